"""The folders of a run on this machine."""

import argparse
import os.path
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The file that marks the folder of a run. Only a folder with this file is emptied.
MARK = ".orchard-demo"


class UnusableFolder(ValueError):
    """A folder whose path Airflow changes."""

    def __init__(self, folder: Path, change: str) -> None:
        super().__init__(f"Airflow cannot use the folder {folder}, because it {change} in paths: use another --folder")


def check_path(folder: Path) -> None:
    """Check that Airflow leaves the path of a folder as it is.

    Raises:
        UnusableFolder: Airflow changes it.
    """
    if os.path.expandvars(folder) != str(folder):
        raise UnusableFolder(folder, "replaces the names of environment variables")
    # The first two are special in Airflow's configuration file and in the URL of its database.
    for character in "%?\n":
        if character in str(folder):
            raise UnusableFolder(folder, f"does not support {character!r}")


def image_folder(text: str) -> Path:
    """Return the path of an existing folder. The type of a command-line option.

    Raises:
        argparse.ArgumentTypeError: there is no such folder.
    """
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {text}: use DATA=FOLDER with a folder of images per label"
        )
    return Path(text)


def make_empty(folder: Path, data: Path | None) -> None:
    """Create the folder of a run, or empty it if an earlier run created it.

    Args:
        folder: the folder of the run.
        data: the folder of the images, or None if they will be rendered.

    Raises:
        FileExistsError: the folder contains the images, or files that are not from an earlier run.
        UnusableFolder: Airflow cannot use the folder.
    """
    check_path(folder.absolute())
    if data is not None and data.resolve().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{data} is in {folder}, which is emptied first: copy the images to another folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise FileExistsError(
            f"{folder} contains files that are not from an earlier run: use another --folder, or delete it"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
