import json

import pytest

from benchmarks import plan


def test_each_case_is_measured_in_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    plan.main(["--objects", "5000"])
    first, unchanged, changed = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["new"], first["changed"], first["deleted"], first["inventory_files"]) == (5000, 0, 0, 80)
    assert (unchanged["new"], unchanged["changed"], unchanged["deleted"], unchanged["inventory_files"]) == (0, 0, 0, 0)
    assert (changed["new"], changed["changed"], changed["deleted"]) == (1000, 1000, 1000)
    assert all(50 < case["peak_mb"] < 1500 for case in (first, unchanged, changed))
