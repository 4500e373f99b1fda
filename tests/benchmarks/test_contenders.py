from pathlib import Path

from benchmarks import contenders
from sandbox import pictures
from tests.spark.ingested import RunFolders, write_ingested


def test_the_bare_loops_divide_the_images_among_them(tmp_path: Path, model_file: Path) -> None:
    pictures.write_dataset(tmp_path, per_class=1)
    halves = [contenders.bare_features(str(tmp_path), str(model_file), number, "2") for number in "01"]
    assert sum(half["images"] for half in halves) == len(list(tmp_path.rglob("*.jpg")))
    assert all(half["loop"] > 0 for half in halves)


def test_every_phase_of_the_features_step_is_measured(tmp_path: Path, model_file: Path) -> None:
    pictures.write_dataset(tmp_path / "images", per_class=1)
    folders = RunFolders.below(f"file://{tmp_path}")
    write_ingested(folders, tmp_path / "images")
    phases = contenders.phases(f"{folders.scratch_uri}/images", str(model_file), str(tmp_path / "features"))
    assert list(phases) == ["read_us", "decode_us", "resize_us", "inference_us", "arrow_us", "write_us"]
    assert max(phases, key=lambda phase: phases[phase]) == "inference_us"
