import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_aws.emr import daemon, standalone
from local_aws.emr.standalone import Executors, Standalone, StandaloneDidNotStart
from tests.local_aws.program import SERVING, start
from tests.local_aws.user import QUICK_JVM, User, command, read_pid, until, wait_for_death, wait_until

# One task, which ends when all files exist.
PROGRAM = """
import sys, time
from pathlib import Path
from pyspark.sql import SparkSession

folder, name, *others = sys.argv[1:]

def meet(_):
    (Path(folder) / name).touch()
    while not all((Path(folder) / other).exists() for other in others):
        time.sleep(0.05)

SparkSession.builder.getOrCreate().sparkContext.parallelize(range(1), 1).foreach(meet)
"""
MASTER, WORKER, EXECUTOR = "deploy.master.Master", "deploy.worker.Worker", "executor.CoarseGrainedExecutorBackend"


class Served:
    """The process `python -m local_aws` with a standalone cluster."""

    def __init__(self, master: str, folder: Path) -> None:
        self.log = folder / "log"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCAL_EMR_MASTER", master)
            self.process = start(folder / "data", 0, self.log)

    def user(self) -> User:
        """Wait until the server is ready, and return a user of it."""
        match = wait_until(lambda: SERVING.search(self.log.read_text()), "a server", seconds=90)
        return User(match.group(1))

    def begin_step(self, folder: Path) -> str:
        """Start a step whose task never ends, and return the id of its cluster."""
        user = self.user()
        program = user.put("meet.py", PROGRAM)
        cluster_id = user.start(
            command("spark-submit", *QUICK_JVM, program, str(folder), "started", "never"), keep_alive=True
        )
        wait_until((folder / "started").exists, "the step's task", seconds=120)
        return cluster_id

    def descendants(self) -> dict[int, str]:
        """Return the command lines of all its descendant processes by pid."""
        parents, lines = {}, {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                stat, line = (process / "stat").read_text(), (process / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
            lines[int(process.name)] = line.replace("\0", " ")
        family = {self.process.pid}
        while children := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= children
        return {pid: lines[pid] for pid in family - {self.process.pid}}


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    served = Served("standalone[1,1,512]", folder)
    try:
        served.user().make_bucket()
        yield served
    finally:
        served.process.kill()
        served.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as served:
        yield served


def listening(pids: Iterable[int]) -> set[str]:
    """Return the addresses at which processes listen, in the hexadecimal format of /proc."""
    sockets = {link.readlink().name for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


def count(family: dict[int, str], program: str) -> int:
    return sum(program in line for line in family.values())


@pytest.mark.slow
def test_no_process_of_the_standalone_cluster_outlives_a_killed_server(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.begin_step(tmp_path)
        family = served.descendants()
        assert [count(family, program) for program in (MASTER, WORKER, EXECUTOR)] == [1, 1, 1]
        served.process.kill()
        assert served.process.wait(30) == -signal.SIGKILL
        for pid in family:
            wait_for_death(pid)


@pytest.mark.slow
def test_all_processes_listen_only_on_this_machine(served: Served, tmp_path: Path) -> None:
    cluster_id = served.begin_step(tmp_path)
    assert listening(served.descendants()) == {"0100007F", "0000000000000000FFFF00000100007F"}
    served.user().terminate(cluster_id)
    served.user().wait_for(cluster_id, "TERMINATED")


@pytest.mark.slow
def test_cancelling_a_step_ends_its_executors_but_not_the_workers(served: Served, tmp_path: Path) -> None:
    cluster_id = served.begin_step(tmp_path)
    user = served.user()
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[user.steps(cluster_id)[0]["Id"]])
    wait_until(lambda: count(served.descendants(), EXECUTOR) == 0, "the end of the executors")
    assert count(served.descendants(), WORKER) == 1


@pytest.mark.slow
def test_steps_of_one_cluster_and_of_two_run_concurrently(served: Served, tmp_path: Path) -> None:
    user = served.user()
    program = user.put("meet.py", PROGRAM)
    steps = [
        command("spark-submit", program, str(tmp_path), *names)
        for names in (("a", "b", "c"), ("b", "a"), ("c", "a", "b"))
    ]
    clusters = [user.start(*steps[:2], StepConcurrencyLevel=2), user.start(steps[2])]
    for cluster_id in clusters:
        user.wait_for(cluster_id, "TERMINATED")
    states = [state for cluster_id in clusters for state in user.step_states(cluster_id)]
    assert states == ["COMPLETED"] * 3


@pytest.mark.parametrize(
    ("master", "code", "message"),
    [
        ("yarn", 2, "use local[N], local[*], local-cluster[EXECUTORS,CORES,MB] or standalone[EXECUTORS,CORES,MB]"),
        # A worker counts cores in 32 bits.
        (f"standalone[1,{2**31},512]", 1, "Spark's standalone worker-1 has not started"),
    ],
)
def test_an_unavailable_master_makes_the_program_exit_with_the_reason(
    tmp_path: Path, master: str, code: int, message: str
) -> None:
    served = Served(master, tmp_path)
    assert served.process.wait(90) == code
    assert message in served.log.read_text()


def replace_java(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Replace Java by a shell script with this line."""
    (folder / "bin").mkdir()
    (folder / "bin/java").write_text(f"#!/bin/sh\n{line}\n")
    (folder / "bin/java").chmod(0o755)
    monkeypatch.setattr(daemon, "JAVA_HOME", folder)


def test_a_master_that_ends_at_startup_is_reported_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_java(tmp_path, monkeypatch, "echo no memory >&2; exit 1")
    with pytest.raises(StandaloneDidNotStart, match=r"(?s)master has not started .* end with: .*no memory"):
        Standalone(Executors(1, 1, 512), tmp_path / "data").start()


def test_waiting_for_a_master_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_java(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; {until(tmp_path / 'never')}")
    monkeypatch.setattr(standalone, "START_SECONDS", 0.5)
    with pytest.raises(StandaloneDidNotStart, match=r"after [01] s"):
        Standalone(Executors(1, 1, 512), tmp_path / "data").start()
    wait_for_death(read_pid(tmp_path / "pid"))


def test_a_worker_that_dies_later_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    up = "Starting Spark master at spark://a:1. Successfully registered with master"
    replace_java(
        tmp_path,
        monkeypatch,
        f"echo '{up}' >&2; case $* in *Worker*) {until(tmp_path / 'end')}; exit 3; esac; {until(tmp_path / 'never')}",
    )
    monkeypatch.setattr(standalone, "WATCH_SECONDS", 0.02)
    cluster = Standalone(Executors(1, 1, 512), tmp_path / "data")
    cluster.start()
    (tmp_path / "end").touch()
    wait_until(lambda: "worker-1 has ended" in caplog.text, "the warning")
    cluster.stop()
    assert [record.levelname for record in caplog.records if "has ended" in record.message] == ["WARNING"]
