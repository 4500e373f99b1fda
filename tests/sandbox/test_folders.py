import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import folders


def test_a_folder_is_emptied_only_if_an_earlier_run_created_it(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="files that are not from an earlier run: use another --folder"):
        folders.make_empty(photos, None)
    assert (photos / "holiday.jpg").exists()

    folders.make_empty(tmp_path / "run", photos)
    (tmp_path / "run/old.log").write_text("1")
    folders.make_empty(tmp_path / "run", photos)
    assert not (tmp_path / "run/old.log").exists()


def test_images_in_the_folder_of_the_run_are_not_deleted(tmp_path: Path) -> None:
    folders.make_empty(tmp_path / "run", None)
    (tmp_path / "run/pictures").mkdir()
    with pytest.raises(FileExistsError, match="copy the images to another folder"):
        folders.make_empty(tmp_path / "run", tmp_path / "run/pictures")


@pytest.mark.parametrize("name", ["a b", "$no_such_variable", 'it\'s "é"', "{x}~#:;&"])
def test_a_folder_can_have_a_path_that_needs_quotes(tmp_path: Path, name: str) -> None:
    folders.make_empty(tmp_path / name, None)
    assert (tmp_path / name / folders.MARK).exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a $HOME", "replaces the names of environment variables"),
        ("50%", "does not support '%'"),
        ("what?", "does not support '?'"),
    ],
)
def test_a_folder_whose_path_airflow_would_change_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(folders.UnusableFolder) as raised:
        folders.make_empty(tmp_path / name, None)
    assert f"{tmp_path / name}, because it {reason} in paths: use another --folder" in str(raised.value)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("module", ["demo", "sandbox.up"])
def test_a_missing_data_folder_is_reported_before_anything_starts(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, "--data", str(tmp_path / "none"), "--folder", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=folders.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"no folder {tmp_path}/none: use DATA=FOLDER" in done.stderr
    assert not (tmp_path / "run").exists()
