"""pip selects the wheels of a node from the folder of a release, without a network, for each architecture."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.release import ARCHITECTURES, ROOT
from orchard.cluster import instances

REQUIREMENTS = ROOT / "bootstrap/requirements.txt"
# What pip accepts on Amazon Linux 2023, which has glibc 2.34: https://peps.python.org/pep-0600/. No wheel of a package
# with compiled code is built for a glibc before 2.17.
TAGS = [*(f"manylinux_2_{minor}" for minor in range(34, 16, -1)), "manylinux2014"]


def select(wheels: Path, architecture: str, target: Path) -> subprocess.CompletedProcess[str]:
    """Let pip select the wheels that it would install on a node, as `bootstrap/install.sh` does."""
    platforms = [word for tag in TAGS for word in ("--platform", f"{tag}_{architecture}")]
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check"),
        *("--no-cache-dir", "--require-hashes", "--only-binary", ":all:", "--no-index", f"--find-links={wheels}"),
        *("--python-version", "3.11", *platforms, f"--target={target}", "--ignore-installed", "--report=-"),
        f"--requirement={REQUIREMENTS}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def links(build_dir: Path, folder: Path) -> Path:
    """Return a folder of links to the wheels of the release."""
    folder.mkdir()
    for wheel in (build_dir / "wheels").glob("*.whl"):
        (folder / wheel.name).symlink_to(wheel)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_folder_of_the_wheels_has_every_requirement_for_every_architecture(
    build_dir: Path, tmp_path: Path, architecture: str
) -> None:
    done = select(build_dir / "wheels", architecture, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    selected = {Path(item["download_info"]["url"]).name for item in report["install"]}
    fits = re.compile(rf"(-any|_{architecture})\.whl$")
    assert selected == {wheel.name for wheel in (build_dir / "wheels").glob("*.whl") if fits.search(wheel.name)}
    names = re.findall(r"^([a-z][a-z0-9-]*)==", REQUIREMENTS.read_text(), flags=re.MULTILINE)
    installed = [re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower() for item in report["install"]]
    assert sorted(installed) == sorted(names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_missing_wheel_of_an_architecture_is_named_for_this_architecture_only(
    build_dir: Path, tmp_path: Path, architecture: str
) -> None:
    wheels = links(build_dir, tmp_path / "wheels")
    (missing,) = wheels.glob(f"ai_edge_litert-*_{architecture}.whl")
    missing.unlink()
    done = select(wheels, architecture, tmp_path / "site")
    assert done.returncode != 0
    assert "No matching distribution found for ai-edge-litert==" in done.stderr
    (other,) = {*ARCHITECTURES} - {architecture}
    assert select(wheels, other, tmp_path / "site").returncode == 0


def test_no_requirement_depends_on_the_architecture_of_the_machine_that_downloads_the_wheels() -> None:
    # pip evaluates markers for the machine that it runs on, whatever --platform says.
    markers = set(re.findall(r"^[a-z][^;\\]*;\s*([^\\\n]*?)\s*\\?$", REQUIREMENTS.read_text(), flags=re.MULTILINE))
    assert markers <= {"sys_platform == 'linux'"}


def test_the_release_has_the_architectures_of_the_instance_types() -> None:
    assert set(ARCHITECTURES) == set(instances.ARCHITECTURES)
