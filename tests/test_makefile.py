"""The commands that `make` runs."""

import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def last_command(*arguments: str, **variables: str) -> list[str]:
    """Return the words of the last command that `make` would run."""
    command = [
        "make",
        "--dry-run",
        "--assume-old=release-parts",
        "--assume-old=setup",
        "--no-print-directory",
        *arguments,
    ]
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "DATA", "BUCKET")} | variables
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return shlex.split(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("value", ["plain", "my folder", "a $HOME $(x) $$", "it's", '"q"', "`id`;#", "é\\"])
@pytest.mark.parametrize(
    ("target", "variable", "option"),
    [
        ("demo", "DATA", "--data"),
        ("up", "DATA", "--data"),
        ("bench", "DATA", "--data"),
        ("release", "BUCKET", "--bucket"),
        ("release-list", "BUCKET", "--bucket"),
        ("deploy", "STACK", "--stack"),
        ("destroy", "STACK", "--stack"),
    ],
)
def test_a_variable_is_passed_as_it_was_written(target: str, variable: str, option: str, value: str) -> None:
    for words in (last_command(target, f"{variable}={value}"), last_command(target, **{variable: value})):
        assert words[words.index(option) + 1] == value


def test_a_list_is_passed_as_its_words() -> None:
    words = last_command("deploy", "STACK=a", "PARAMETERS=A=1 B=it's C=$x", "DATASETS=s3://a/b/ s3://c/")
    assert words[words.index("--datasets") :] == [
        "--datasets",
        "s3://a/b/",
        "s3://c/",
        "--parameters",
        "A=1",
        "B=it's",
        "C=$x",
    ]


def test_the_wheels_are_downloaded_for_every_architecture_and_for_the_glibc_of_the_nodes() -> None:
    command = ["make", "--dry-run", "--what-if=bootstrap/requirements.txt", "--no-print-directory", "release-parts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    downloads = [part.split() for part in done.stdout.split("&&") if "pip download" in part]
    architectures = []
    for words in downloads:
        platforms = [value for option, value in itertools.pairwise(words) if option == "--platform"]
        found = [re.fullmatch(r"manylinux(?:_2_(\d+)|2014)_(x86_64|aarch64)", platform) for platform in platforms]
        assert all(match and int(match[1] or 17) <= 34 for match in found), platforms
        architectures.append({match[2] for match in found if match})
    assert architectures == [{"x86_64"}, {"aarch64"}]


def test_wheels_that_were_downloaded_for_other_architectures_are_not_complete(tmp_path: Path) -> None:
    # The file that marked the wheels as complete when they were for x86_64 only.
    earlier = tmp_path / "build/wheels/.complete"
    earlier.parent.mkdir(parents=True)
    for file in (earlier, tmp_path / "uv.lock"):
        file.touch()
    command = ["make", "--dry-run", "--no-print-directory", f"--file={ROOT / 'Makefile'}", "release-parts"]
    for folder in (".venv", "bootstrap", "model"):
        (tmp_path / folder).mkdir()
    for name in ("pyproject.toml", ".venv/.synced", "bootstrap/requirements.txt", "model/export.py"):
        (tmp_path / name).touch()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip download" in done.stdout


def test_without_a_variable_there_is_no_option() -> None:
    assert last_command("demo") == [".venv/bin/python", "-m", "demo"]
