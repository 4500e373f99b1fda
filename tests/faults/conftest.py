from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

from sandbox import up
from tests.faults.deployment import Deployment, Run, build, wait_until

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


OUTCOMES: list[Outcome] = []


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> Iterator[Deployment]:
    """One deployment for all faults, which happen one after the other."""
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

    def __call__(self, run: Run, state: str, *, clusters: int = 1, cause: tuple[str, str] | None = None) -> None:
        """Check the run's state, that no cluster is active, and that readers see the run only if it succeeds.

        `cause` is a task, and a text that its log must contain.
        """
        assert run.wait_for_end() == state
        active = run.active_clusters()
        self.record(run, state, active, "the teardown" if run.clusters() else "no cluster")
        assert active == []
        assert len(run.clusters()) == clusters
        assert run.is_published() == (state == "success")
        if cause is not None:
            assert cause[1] in run.log(cause[0])

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

    def record(
        self, run: Run, state: str, active: "list[str] | None" = None, terminated_by: str = "the teardown"
    ) -> None:
        """Add a row to the table."""
        seen = "the run" if run.is_published() else "no rows of it"
        OUTCOMES.append(Outcome(self.fault, state, len(run.clusters()), len(active or []), terminated_by, seen))


@pytest.fixture
def check(deployment: Deployment, request: pytest.FixtureRequest) -> Check:
    """The check after a fault. The name of the test is the name of the fault."""
    return Check(deployment, request.node.name.removeprefix("test_").replace("_", " "))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the outcome of each fault as a table, and write the table to a file."""
    if not OUTCOMES:
        return
    rows = [COLUMNS, *(tuple(map(str, astuple(outcome))) for outcome in OUTCOMES)]
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
