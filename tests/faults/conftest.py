import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from sandbox import up
from tests.conftest import record_calls
from tests.faults.deployment import DAG, Deployment, Run, build, wait_until

COLUMNS = ("fault", "run", "clusters created", "active afterwards", "terminated by", "readers see")
TABLE = Path(__file__).parents[2] / "build/faults.md"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fault: a row of the table."""

    fault: str
    run_state: str
    clusters_created: int
    active_afterwards: int
    terminated_by: str
    readers_see: str


# The name of the property with which a test hands its outcome to the process that prints the table.
OUTCOME = "outcome"


@pytest.fixture(scope="package", autouse=True)
def calls() -> Iterator[None]:
    with record_calls("faults"):
        yield


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> Iterator[Deployment]:
    """One deployment for all faults of a file, which happen one after the other."""
    folder = tmp_path_factory.mktemp("deployment")
    try:
        yield build(folder, build_dir)
    finally:
        up.down(folder)


@pytest.fixture(autouse=True)
def _remove_faults_after_each_test(deployment: Deployment) -> Iterator[None]:
    yield
    deployment.aws.clear()


@dataclass(frozen=True)
class Check:
    """What must hold after every fault."""

    deployment: Deployment
    fault: str
    record_property: Callable[[str, object], None]

    def __call__(
        self,
        run: Run,
        state: str,
        *,
        clusters: int = 1,
        cause: tuple[str, str] | None = None,
        published: bool | None = None,
    ) -> None:
        """Check the run's state and alerts, that no cluster is active, and that readers see only a run that succeeds.

        `cause` is a task, and a text that its log and the last alert must contain. `published` is whether readers see
        the run, if that does not follow from its state.
        """
        assert run.wait_for_end() == state
        active = run.active_clusters()
        self.record(run, state, active, "the teardown" if run.clusters() else "no cluster")
        assert active == []
        assert len(run.clusters()) == clusters
        assert run.is_published() == ((state == "success") if published is None else published)
        if cause is not None:
            assert cause[1] in run.log(cause[0])
        self.alerts(run, run.failures + (state == "failed"), cause)

    def alerts(self, run: Run, failures: int, cause: tuple[str, str] | None = None) -> None:
        """Check that the team received one alert per failed end of the run, with its cause and a link to the run."""

        def received() -> list[str]:
            return [alert for alert in self.deployment.alerts_of(run) if " has failed: " in alert]

        if failures:
            wait_until(lambda: len(received()) >= failures, f"{failures} alerts about {run.run_id}")
        alerts = received()
        assert len(alerts) == failures, alerts
        if cause is not None:
            assert f" has failed: {cause[0]}: " in alerts[-1]
            assert cause[1] in alerts[-1]
        link = f"http://127.0.0.1:{self.deployment.web_port}/dags/{DAG}/runs/{quote(run.run_id, safe='')}"
        for alert in alerts:
            assert "\n" not in alert
            assert alert.endswith(f"; {link}")

    def recovery(self, run: Run) -> None:
        """Check that the team received one message that a run has succeeded after it had failed, with its sentence."""

        def received() -> list[str]:
            return [alert for alert in self.deployment.alerts_of(run) if " has succeeded after it had failed" in alert]

        wait_until(received, f"the recovery of {run.run_id}")
        (message,) = received()
        assert re.search(r" had failed: 12 images, all new, [^;]+ min, \$[0-9.]+; http://", message), message

    def with_janitor(self, run: Run, state: str) -> None:
        """Check the run's state, and that its cluster is active until the janitor runs."""
        # The teardown makes all of its attempts first.
        assert run.wait_for_end(timeout_seconds=900) == state
        active = run.active_clusters()
        assert len(active) == 1
        self.deployment.aws.clear()
        self.deployment.api.trigger("emr_janitor", {})
        wait_until(lambda: not run.active_clusters(), "the termination of the cluster")
        self.record(run, state, active, "the janitor")
        assert not run.is_published()
        self.alerts(run, 1)

    def record(
        self, run: Run, state: str, active: "list[str] | None" = None, terminated_by: str = "the teardown"
    ) -> None:
        """Add a row to the table."""
        seen = "the run" if run.is_published() else "no rows of it"
        outcome = Outcome(self.fault, state, len(run.clusters()), len(active or []), terminated_by, seen)
        self.record_property(OUTCOME, astuple(outcome))


@pytest.fixture
def check(
    deployment: Deployment, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Check:
    """The check after a fault. The name of the test is the name of the fault."""
    return Check(deployment, request.node.name.removeprefix("test_").replace("_", " "), record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the outcome of each fault as a table, and write the table to a file."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    # Several processes may have run the tests: sorted by file, and within a file in the order of the tests.
    ordered = sorted(reports, key=lambda report: report.location[:2])
    outcomes = [value for report in ordered for name, value in report.user_properties if name == OUTCOME]
    if not outcomes:
        return
    rows = [COLUMNS, *(tuple(map(str, outcome)) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    terminalreporter.section("faults")
    for line in lines:
        terminalreporter.write_line(line)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n")
