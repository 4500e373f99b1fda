from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

from demo import up
from tests.faults.stand import Run, Stand, build, wait_until

COLUMNS = ("fault", "run", "clusters created", "alive after", "ended by", "readers see")
TABLE = Path(__file__).parents[2] / "build/faults.md"


@dataclass(frozen=True)
class Outcome:
    """What a fault came to: a line of the table."""

    fault: str
    run_state: str
    clusters_created: int
    alive_after: int
    ended_by: str
    readers_see: str


OUTCOMES: list[Outcome] = []


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> Iterator[Stand]:
    """One for all faults; they come one after the other."""
    folder = tmp_path_factory.mktemp("stand")
    try:
        yield build(folder, build_dir)
    finally:
        up.down(folder)


@pytest.fixture(autouse=True)
def _no_fault_outlives_its_test(stand: Stand) -> Iterator[None]:
    yield
    stand.aws.clear()


@dataclass(frozen=True)
class Check:
    """What must hold after every fault."""

    stand: Stand
    fault: str

    def __call__(self, run: Run, state: str, *, clusters: int = 1, cause: tuple[str, str] | None = None) -> None:
        """The run has this state; no cluster lives; a failed run is not to be seen; its error says what the cause is.

        `cause` is a task and what its log says.
        """
        assert run.wait_for_end() == state
        alive = run.live_clusters()
        self.note(run, state, alive, "its teardown" if run.clusters() else "none was made")
        assert alive == []
        assert len(run.clusters()) == clusters
        assert run.is_published() == (state == "success")
        if cause is not None:
            assert cause[1] in run.log(cause[0])

    def with_janitor(self, run: Run, state: str) -> None:
        """The run has this state, its cluster lives; after one run of the janitor it does not."""
        # All tries of the teardown come first.
        assert run.wait_for_end(seconds=900) == state
        alive = run.live_clusters()
        assert len(alive) == 1
        self.stand.aws.clear()
        self.stand.call("POST", "dags/emr_janitor/dagRuns", {"logical_date": None})
        wait_until(lambda: not run.live_clusters(), "what the janitor reaps")
        self.note(run, state, alive, "the janitor")
        assert not run.is_published()

    def note(self, run: Run, state: str, alive: "list[str] | None" = None, ended_by: str = "its teardown") -> None:
        """Add a line to the table."""
        seen = "the run" if run.is_published() else "nothing of it"
        OUTCOMES.append(Outcome(self.fault, state, len(run.clusters()), len(alive or []), ended_by, seen))


@pytest.fixture
def check(stand: Stand, request: pytest.FixtureRequest) -> Check:
    """The check after a fault, which is named by its test."""
    return Check(stand, request.node.name.removeprefix("test_").replace("_", " "))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each fault came to, and keep it."""
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
