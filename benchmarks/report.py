"""Summarise the rounds as medians and ratios, for benchmarks/results.json and docs/performance.md."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PARTS = ("features", "pca", "ingest", "scaling", "nights", "orchestration", "bootstrap")
PAGE = Path(__file__).parent.parent / "docs/performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Rounds = Sequence[dict[str, Any]]


def median(rounds: Rounds, figure: Callable[[dict[str, Any]], float]) -> float:
    """Return the median of a figure over the rounds, to three significant digits."""
    return float(f"{statistics.median(figure(one) for one in rounds):.3g}")


def bare_seconds(one: dict[str, Any], figure: str = "loop") -> float:
    """Return the seconds of the slower bare loop, as the mean of the loops before and after the step.

    The figure `loop` excludes the start of the process, `seconds` includes it.
    """
    return statistics.mean(max(float(loop[figure]) for loop in loops) for loops in one["bare"])


def _features(rounds: Rounds) -> dict[str, Any]:
    compared = [one for one in rounds if "predecessor" in one]
    measured: dict[str, Any] = {
        "images": rounds[0]["ours"]["features"]["rows_in"],
        "inferences_per_image": median(
            rounds, lambda one: one["ours"]["features"]["inferences"] / one["ours"]["features"]["rows_in"]
        ),
        "images_per_second_per_vcpu": median(
            rounds, lambda one: one["ours"]["features"]["rows_in"] / one["ours"]["features"]["process"] / 2
        ),
        "vs_bare_loop": median(rounds, lambda one: bare_seconds(one) / one["ours"]["features"]["task_seconds"]),
        "vs_bare_loop_with_startup": median(
            rounds, lambda one: bare_seconds(one, "seconds") / one["ours"]["features"]["process"]
        ),
        "startup_seconds": median(
            rounds, lambda one: one["ours"]["features"]["process"] - one["ours"]["features"]["task_seconds"]
        ),
        "task_skew": median(rounds, lambda one: one["ours"]["features"]["task_skew"]),
        "worker_peak_mb": median(rounds, lambda one: one["ours"]["features"]["worker_peak_mb"]),
        "largest_process_mb": median(rounds, lambda one: one["ours"]["features"]["largest_process_mb"]),
    }
    for phase in rounds[0]["phases"]:
        if phase.endswith("_us"):
            measured[f"{phase}_per_image"] = median(rounds, lambda one, phase=phase: one["phases"][phase])  # type: ignore[misc]
    if compared:
        measured["vs_predecessor"] = median(
            compared,
            lambda one: (
                one["predecessor"]["read_and_featurise"]
                / (one["ours"]["ingest"]["process"] + one["ours"]["features"]["process"])
            ),
        )
        measured["predecessor_images_per_second_per_vcpu"] = median(
            compared,
            lambda one: one["ours"]["features"]["rows_in"] / one["predecessor"]["read_and_featurise"] / 2,
        )
    return measured


def _whole_run(rounds: Rounds) -> dict[str, Any]:
    def ours(one: dict[str, Any]) -> float:
        return float(sum(step["process"] for step in one["ours"].values()))

    compared = [one for one in rounds if "predecessor" in one]
    whole: dict[str, Any] = {
        "seconds": median(rounds, ours),
        **{
            f"{name}_seconds": median(rounds, lambda one, name=name: one["ours"][name]["process"])  # type: ignore[misc]
            for name in ("ingest", "features", "pca")
        },
    }
    if compared:
        whole["vs_predecessor"] = median(compared, lambda one: one["predecessor"]["seconds"] / ours(one))
        whole["predecessor_seconds"] = median(compared, lambda one: one["predecessor"]["seconds"])
    return whole


def _pca(rounds: Rounds) -> dict[str, Any]:
    return {
        "rows": rounds[0]["our_fit"]["rows"],
        "fit_seconds": median(rounds, lambda one: one["our_fit"]["fit"]),
        "vs_spark_ml": median(rounds, lambda one: one["spark_ml_fit"]["fit"] / one["our_fit"]["fit"]),
        "times_bare_gram": median(rounds, lambda one: one["our_fit"]["fit"] / one["bare_gram"]["fit"]),
        "worker_peak_mb": median(rounds, lambda one: one["our_fit"]["worker_peak_mb"]),
        "driver_peak_mb": median(rounds, lambda one: one["our_fit"]["peak_mb"]),
    }


def _ingest(rounds: Rounds) -> dict[str, Any]:
    def ours(one: dict[str, Any]) -> float:
        return float(one["ours"]["rows_in"] / one["ours"]["task_seconds"])

    def theirs(one: dict[str, Any]) -> float:
        return float(one["binary_file"]["objects"] / one["binary_file"]["read"])

    return {
        "objects_per_second": median(rounds, ours),
        "objects_per_second_with_startup": median(rounds, lambda one: one["ours"]["rows_in"] / one["ours"]["process"]),
        "vs_binary_file": median(rounds, lambda one: ours(one) / theirs(one)),
        "vs_bare_loop": median(rounds, lambda one: bare_seconds(one) / one["ours"]["task_seconds"]),
        "worker_peak_mb": median(rounds, lambda one: one["ours"]["worker_peak_mb"]),
    }


def _scaling(rounds: Rounds) -> dict[str, Any]:
    def exponent(one: dict[str, Any], figure: str) -> float:
        """The exponent with which the seconds of ingest and features grow with the images; 1 means linear."""
        seconds = {size: steps["ingest"][figure] + steps["features"][figure] for size, steps in one.items()}
        logarithms = [(math.log(int(size)), math.log(duration)) for size, duration in seconds.items()]
        return statistics.linear_regression(*zip(*logarithms, strict=True)).slope

    def speedup(one: dict[str, Any], size: str) -> float:
        return float(one[size]["executors_1"]["seconds"] / one[size]["executors_2"]["seconds"])

    return {
        "speedup_2_executors": median(rounds, lambda one: speedup(one, "6000")),
        "speedup_2_executors_20000_images": median(rounds, lambda one: speedup(one, "20000")),
        "cost_exponent": median(rounds, lambda one: exponent(one, "task_seconds")),
        "cost_exponent_with_startup": median(rounds, lambda one: exponent(one, "process")),
        "worker_peak_mb_20000_images": median(rounds, lambda one: one["20000"]["features"]["worker_peak_mb"]),
        "ingest_objects_per_second_with_startup_20000_images": median(
            rounds, lambda one: one["20000"]["ingest"]["rows_in"] / one["20000"]["ingest"]["process"]
        ),
    }


def _nights(rounds: Rounds) -> dict[str, Any]:
    def seconds(one: dict[str, Any], night: str) -> float:
        return float(sum(step["process"] for step in one[night].values()))

    return {
        "images": rounds[0]["full"]["pca"]["rows_in"],
        "changes": rounds[0]["changed"]["features"]["inferences"],
        "full_seconds": median(rounds, lambda one: seconds(one, "full")),
        "changed_seconds": median(rounds, lambda one: seconds(one, "changed")),
        "full_vs_changed": median(rounds, lambda one: seconds(one, "full") / seconds(one, "changed")),
        "changed_pca_seconds": median(rounds, lambda one: one["changed"]["pca"]["process"]),
        "pca_worker_peak_mb": median(rounds, lambda one: one["changed"]["pca"]["worker_peak_mb"]),
    }


def _orchestration(rounds: Rounds) -> dict[str, Any]:
    return {
        "run_seconds": median(rounds, lambda one: one["run"]),
        "step_seconds": median(rounds, lambda one: sum(one["steps"].values())),
        "cluster_start_seconds": median(rounds, lambda one: one["cluster_start"]),
        "seconds_beside_steps_and_start": median(rounds, lambda one: one["rest"]),
        "seconds_beside_steps_from_ready_to_published": median(rounds, lambda one: one["rest_from_ready_to_published"]),
        "longest_slot_seconds_of_a_waiting_task": median(rounds, lambda one: one["longest_slot_of_a_waiting_task"]),
        "parse_seconds": median(rounds, lambda one: one["parse"]),
    }


def _bootstrap(rounds: Rounds) -> dict[str, Any]:
    return {name: median(rounds, lambda one, name=name: one[name]) for name in ("seconds", "mb")}  # type: ignore[misc]


def summarise(part: str, rounds: Rounds, machine: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a part: its figures, the machine and the raw rounds.

    Each round of `features` runs all steps, so it also gives the results of `whole_run`.
    """
    figures = {
        "features": _features,
        "pca": _pca,
        "ingest": _ingest,
        "scaling": _scaling,
        "nights": _nights,
        "orchestration": _orchestration,
        "bootstrap": _bootstrap,
    }
    results = {part: {**figures[part](rounds), "machine": machine, "rounds": list(rounds)}}
    if part == "features":
        results["whole_run"] = {**_whole_run(rounds), "machine": machine, "rounds": "see features"}
    return results


def with_airflow(results: dict[str, Any]) -> dict[str, Any]:
    """Add the speed of the whole run, from the ready cluster to the published tables, if its parts are measured.

    The steps and the predecessor read from the slow S3, but the run in Airflow reads from the local AWS. So the time
    that this run spends outside its steps is added to the measured seconds of the steps.
    """
    whole, run = results.get("whole_run", {}), results.get("orchestration")
    if "predecessor_seconds" not in whole or run is None:
        return results
    seconds = whole["seconds"] + run["seconds_beside_steps_from_ready_to_published"]
    ratio = float(f"{whole['predecessor_seconds'] / seconds:.3g}")
    return {**results, "whole_run": {**whole, "vs_predecessor_with_airflow": ratio}}


def table(results: dict[str, Any]) -> str:
    """Return the figures of all parts as a Markdown table."""
    lines = ["| part | figure | median | rounds | load average before |", "|---|---|---|---|---|"]
    for part, found in results.items():
        rounds = found["rounds"] if isinstance(found["rounds"], list) else results["features"]["rounds"]
        for name, value in found.items():
            if name not in ("machine", "rounds"):
                load = found["machine"]["load_before"][0]
                lines.append(f"| {part} | {name.replace('_', ' ')} | {value:g} | {len(rounds)} | {load} |")
    return "\n".join(lines)


def write_table(results: dict[str, Any]) -> None:
    """Replace the table between the two markers of the page."""
    PAGE.write_text(replace_between(PAGE.name, PAGE.read_text(), BEGIN, END, table(results)))


def replace_between(name: str, page: str, begin: str, end: str, content: str) -> str:
    """Return a page in which the lines between two markers are replaced. `name` is that of its file.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{name} lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"
