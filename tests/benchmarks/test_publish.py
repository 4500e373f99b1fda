import json

import pytest

from benchmarks import publish


def test_a_first_run_and_the_next_one_are_published_and_measured(capfd: pytest.CaptureFixture[str]) -> None:
    publish.main(["--images", "2000", "--changed", "10"])
    result = json.loads(capfd.readouterr().out)
    assert (result["images"], result["changed"]) == (2000, 10)
    assert set(result["seconds"]) == {"first run", "next run"}
    assert all(0 < seconds < 60 for seconds in result["seconds"].values())
    assert 0.05 < result["images_table_mb"] < 1, "each image takes about 50 to 100 bytes"
