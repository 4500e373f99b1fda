import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import large_images


@pytest.mark.slow
def test_the_memory_of_the_workers_is_measured_for_both_steps(
    capfd: pytest.CaptureFixture[str], model_file: object
) -> None:
    large_images.main(["--images", "3", "--slots", "2", "--width", "300", "--height", "200"])
    results = json.loads(capfd.readouterr().out)
    assert list(results) == ["ingest", "features"]
    for step in results.values():
        assert 20 < step["worker_peak_mb"] < 2000
        assert 20 < step["all_workers_peak_mb"] < 4000


def test_the_images_are_transparent_and_of_one_size(tmp_path: Path) -> None:
    large_images.write_images(tmp_path, 5, 300, 200)
    found = sorted(tmp_path.rglob("*.png"))
    assert len(found) == 5
    assert {(Image.open(path).size, Image.open(path).mode) for path in found} == {((300, 200), "RGBA")}
