import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchard_spark import turns

HOLD = """
import sys, time
from pathlib import Path
from orchard_spark import turns
size, name, seconds = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
with turns.turn(size):
    name.with_suffix(".start").write_text(str(time.monotonic()))
    time.sleep(seconds)
    name.with_suffix(".end").write_text(str(time.monotonic()))
"""


def hold(folder: Path, name: str, size: int, seconds: float) -> subprocess.Popen[bytes]:
    env = {**os.environ, "SPARK_LOCAL_DIRS": f"{folder},/elsewhere"}
    return subprocess.Popen([sys.executable, "-c", HOLD, str(size), str(folder / name), str(seconds)], env=env)


def spans(folder: Path, names: list[str]) -> list[tuple[float, float]]:
    def seconds(name: str, suffix: str) -> float:
        return float((folder / f"{name}.{suffix}").read_text())

    return sorted((seconds(name, "start"), seconds(name, "end")) for name in names)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_large_images_take_turns(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    running = [hold(tmp_path, name, turns.LARGE_BYTES + 1, 0.3) for name in names]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    (_, first_end), (second_start, second_end), (third_start, _) = spans(tmp_path, names)
    assert first_end <= second_start
    assert second_end <= third_start


def test_a_small_image_does_not_wait_for_a_large_one(tmp_path: Path) -> None:
    large = hold(tmp_path, "large", turns.LARGE_BYTES + 1, 60)
    try:
        wait_for(tmp_path / "large.start")
        assert hold(tmp_path, "small", turns.LARGE_BYTES, 0).wait(30) == 0
    finally:
        large.kill()
        large.wait()


def test_the_turn_of_a_killed_process_ends(tmp_path: Path) -> None:
    killed = hold(tmp_path, "killed", turns.LARGE_BYTES + 1, 60)
    wait_for(tmp_path / "killed.start")
    killed.kill()
    killed.wait()
    assert hold(tmp_path, "next", turns.LARGE_BYTES + 1, 0).wait(30) == 0


def test_a_turn_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    with pytest.raises(ZeroDivisionError), turns.turn(turns.LARGE_BYTES + 1):
        raise ZeroDivisionError
    assert hold(tmp_path, "next", turns.LARGE_BYTES + 1, 0).wait(30) == 0


def test_freed_memory_goes_back_to_the_operating_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))

    def resident_mb() -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) / 1e3

    before = resident_mb()
    with turns.turn(turns.LARGE_BYTES + 1):
        blocks = [bytearray(100_000) for _ in range(3000)]
        kept = bytearray(100)
        del blocks
    assert resident_mb() - before < 100
    assert len(kept) == 100
