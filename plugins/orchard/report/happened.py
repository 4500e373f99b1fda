"""What happened in a run: the first section of its report, as values that the page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchard.report.airflow_run import RETURN_VALUE, AirflowRun, Task
from orchard.report.run_folder import RunFolder
from orchard.run.hold import HOLD, HOLD_TASK, JUPYTERHUB_PASSWORD, JUPYTERHUB_URL, JUPYTERHUB_USER, time_text
from orchard.run.progress import sentence
from orchard.run.sentence import dollars, duration
from orchard.run.steps import STEPS

# The stages of a run, in their order, with their tasks.
STAGES: Mapping[str, Sequence[str]] = {
    "plan": ("plan", "preflight"),
    "wait for turn": ("wait_turn",),
    "cluster start": ("create_cluster", "cluster_ready"),
    **{step: (f"{step}.add_step", f"{step}.wait_step") for step in STEPS},
    "publish": ("publish",),
    HOLD: (HOLD_TASK,),
    "teardown": ("terminate_cluster", "cluster_gone", "verdict"),
}
# What to do after a failure, by the task that failed. The cause itself names the fault.
HINTS = {
    "plan": "Nothing has been created. Correct the cause, then clear plan with downstream.",
    "preflight": "Nothing has been created. Correct the cause, then clear preflight with downstream.",
    "wait_turn": "Clear wait_turn with downstream when the other run has ended.",
    "create_cluster": "Clear create_cluster with downstream to try again.",
    "cluster_ready": "Clear create_cluster with downstream to create another cluster.",
    "publish": "The tables still show the run before. Correct the cause, then clear publish.",
    HOLD_TASK: "The hold has ended early, and what the run has published stays. To hold a cluster again, trigger a run "
    "with full_refresh.",
}
STEP_HINT = "Clear {step}.add_step with downstream: that creates a new cluster and redoes this step and the later ones."
# Below these, a rate and a price per million images say nothing.
LEAST_RATE, LEAST_READ = 0.05, 1000
OTHER_HINT = "See the log of the task, and the runbook for what to do."


@dataclass(frozen=True)
class Stage:
    """A stage of a run. The times are seconds since the run started. A stage that has not started has no `start`."""

    name: str
    state: str
    start: float | None
    seconds: float | None


@dataclass(frozen=True)
class Fact:
    """A figure of a run, as text, with what it means."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Held:
    """How to look around on a cluster that is held: until when, and with which command, page, user and password."""

    cluster_id: str
    until: str
    command: str
    url: str = JUPYTERHUB_URL
    user: str = JUPYTERHUB_USER
    password: str = JUPYTERHUB_PASSWORD


@dataclass(frozen=True)
class Failure:
    """Why a run failed: the first task that failed, its cause as one line, and what to do."""

    task_id: str
    cause: str
    hint: str


@dataclass(frozen=True)
class Difference:
    """A figure that differs from the last published run of the dataset."""

    name: str
    before: str
    now: str


@dataclass(frozen=True)
class Happened:
    """What the first section of the report shows.

    `progress` is a line about the step that is running, or empty. `held` is there while the run's cluster is held.
    """

    state: str
    sentence: str
    dataset_uri: str
    started: datetime | None
    facts: Sequence[Fact]
    stages: Sequence[Stage]
    differences: Sequence[Difference]
    warnings: Sequence[str]
    failure: Failure | None
    is_published: bool
    progress: str
    done: int
    total: int
    held: Held | None = None


def happened(run: AirflowRun, folder: RunFolder, base: RunFolder | None, now: datetime) -> Happened:
    """Return what happened in a run.

    Args:
        run: what Airflow knows of the run.
        folder: what its folder on S3 holds.
        base: what the folder of the run holds that was published before, if there is one.
        now: the time until which an unfinished stage has lasted.
    """
    summary = folder.summary
    return Happened(
        state=run.state,
        sentence=sentence_of(run, folder),
        dataset_uri=str(run.plan.get("dataset_uri") or run.changes.get("dataset") or run.conf.get("dataset_uri") or ""),
        started=run.start,
        facts=facts(run, folder, now),
        stages=stages(run, now),
        differences=differences(folder, base) if base else [],
        warnings=[str(text) for text in summary.get("warnings") or []],
        failure=failure(run),
        is_published=bool(summary),
        progress=sentence(progress, now) if (progress := folder.progress) else "",
        done=(progress and progress.done) or 0,
        total=(progress and progress.total) or 0,
        held=held(run, now),
    )


def happened_at_publication(folder: RunFolder, base: RunFolder | None, airflow_run_id: str) -> Happened:
    """Return what happened in a run that has just been published, from what its folder holds."""
    summary = folder.summary
    now = datetime.now(UTC)
    run = AirflowRun(
        dag_id="",
        run_id=airflow_run_id,
        state="success",
        run_after=now,
        start=None,
        end=None,
        tasks=(),
        xcoms={("plan", RETURN_VALUE): {"dataset_uri": summary["dataset_uri"]}},
    )
    found = happened(run, folder, base, now)
    return replace(found, stages=stages_of_steps(summary.get("step_seconds") or {}))


def stages_of_steps(step_seconds: Mapping[str, float]) -> list[Stage]:
    """Return the three steps as stages, one after the other: a published run does not know its other tasks.

    >>> stages_of_steps({"ingest": 2.0, "features": 5.0, "pca": 1.0})[1]
    Stage(name='features', state='success', start=2.0, seconds=5.0)
    """
    found: list[Stage] = []
    for step in STEPS:
        if step in step_seconds:
            found.append(Stage(step, "success", sum(stage.seconds or 0 for stage in found), step_seconds[step]))
    return found


def sentence_of(run: AirflowRun, folder: RunFolder) -> str:
    """Return the line that sums up a run: of its summary, else of its plan, else its state."""
    for found in (folder.summary, run.changes):
        if isinstance(found.get("sentence"), str):
            return str(found["sentence"])
    return "Nothing to do" if run.changes.get("nothing_to_do") else ""


def held(run: AirflowRun, now: datetime) -> Held | None:
    """Return how to look around on the run's cluster while it is held, or None."""
    hold = run.hold if run.is_held else None
    if hold is None:
        return None
    left = duration((hold.until - now).total_seconds() / 60)
    return Held(hold.cluster_id, f"{time_text(hold.until)}, for {left}", hold.command)


def failure(run: AirflowRun) -> Failure | None:
    """Return why a run failed, or None if none of its tasks has."""
    found = run.first_failure()
    if found is None:
        return None
    task_id, cause = found
    step = task_id.split(".")[0]
    hint = STEP_HINT.format(step=step) if step in STEPS else HINTS.get(task_id, OTHER_HINT)
    return Failure(task_id, cause, hint)


def stages(run: AirflowRun, now: datetime) -> list[Stage]:
    """Return the stages of a run: each lasts from the end of the stage before to the end of its last task.

    The start of a task says less: that of a sensor is the start of its last poke.
    """
    tasks = {task.task_id: task for task in run.tasks}
    starts = [task.start for task in run.tasks if task.start]
    origin = min(starts, default=run.start or run.run_after)
    found = []
    before: datetime | None = None  # the end of the stage before
    for name, task_ids in STAGES.items():
        if name == HOLD and run.hold is None:
            continue
        of_stage = [tasks[task_id] for task_id in task_ids if task_id in tasks]
        began = [task for task in of_stage if task.start and task.state not in ("skipped", "upstream_failed")]
        if not began:
            found.append(Stage(name, _state(of_stage), None, None))
            continue
        start = min(task.start for task in began if task.start)
        # A hold starts at the publication. The task waits for that.
        start = before or start if name == HOLD else min(start, before or start)
        is_active = any(task.end is None for task in began)
        end = now if is_active else max(task.end for task in began if task.end)
        before = None if is_active else end
        found.append(
            Stage(name, _state(of_stage), (start - origin).total_seconds(), max((end - start).total_seconds(), 0.0))
        )
    return found


def _state(tasks: Sequence[Task]) -> str:
    """Return the state of a stage: the worst of its tasks."""
    states = {task.state for task in tasks}
    if "failed" in states:
        return "failed"
    if states & {"running", "deferred", "up_for_reschedule", "up_for_retry", "queued", "scheduled"}:
        return "running"
    if "success" in states and states <= {"success", "skipped"}:  # with nothing to do, preflight is skipped
        return "success"
    return "skipped" if states & {"skipped", "upstream_failed", "removed"} else "waiting"


def facts(run: AirflowRun, folder: RunFolder, now: datetime) -> list[Fact]:
    """Return the figures of a run that are known."""
    summary, changes = folder.summary, run.changes
    found = [
        Fact(name, count(value))
        for name, value in (
            ("listed", summary.get("images_listed", changes.get("listed"))),
            ("new", summary.get("new", changes.get("new"))),
            ("changed", summary.get("changed", changes.get("changed"))),
            ("deleted", summary.get("deleted", changes.get("deleted"))),
            ("rejected", summary.get("images_rejected")),
            ("inferences", summary.get("inferences")),
        )
        if isinstance(value, int)
    ]
    if run.start:
        found.append(Fact("duration", duration(((run.end or now) - run.start).total_seconds() / 60)))
    rate: Any = _mapping(summary.get("step_images_per_second")).get("features")
    if _is_number(rate) and rate >= LEAST_RATE and summary.get("inferences"):
        found.append(Fact("images/s", f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", "in the step features"))
    estimate = _mapping(summary.get("estimate") or changes.get("estimate"))
    if _is_number(estimate.get("usd")):
        with_spot = estimate.get("usd_with_spot")
        note = (
            f"{dollars(with_spot[0])} to {dollars(with_spot[-1])} with Spot"
            if isinstance(with_spot, Sequence)
            and all(map(_is_number, with_spot))
            and len(set(map(dollars, with_spot))) > 1
            else ""
        )
        found.append(Fact("estimated cost", dollars(estimate["usd"]), note))
    if _is_number(folder.cost.get("usd")):
        per_million: Any = folder.cost.get("usd_per_million")
        read = sum(summary.get(key) or 0 for key in ("new", "changed"))
        is_telling = _is_number(per_million) and read >= LEAST_READ
        note = f"{dollars(per_million)} per million images read" if is_telling else ""
        found.append(Fact("real cost", dollars(folder.cost["usd"]), note))
    return found


def differences(folder: RunFolder, base: RunFolder) -> list[Difference]:
    """Return the figures that differ between a published run and the one before."""
    before, now = base.summary, folder.summary
    if not before or not now:
        return []
    counts = (("images", "images_ingested"), ("rejects", "images_rejected"), ("duplicates", "duplicates"))
    shares = (("label accuracy", "label_accuracy"), ("explained variance", "explained_variance"))
    found = [(name, key, count) for name, key in counts]
    found += [("components", "n_components", count), ("labels", "label_count", count)]
    found += [(name, key, share) for name, key in shares]
    return [
        Difference(name, text(before[key]), text(now[key]))
        for name, key, text in found
        if _is_number(before.get(key)) and _is_number(now.get(key)) and text(before[key]) != text(now[key])
    ]


def count(value: float) -> str:
    """Return a count as text.

    >>> count(22688)
    '22,688'
    """
    return f"{value:,.0f}"


def share(value: float) -> str:
    """Return a share as text.

    >>> share(0.9871)
    '98.7 %'
    """
    return f"{100 * value:.1f} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
