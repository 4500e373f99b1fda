"""The commands that `make` runs."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def last_command(*arguments: str, **variables: str) -> list[str]:
    """Return the words of the last command that `make` would run."""
    command = ["make", "--dry-run", "--assume-old=release-parts", "--no-print-directory", *arguments]
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
    ],
)
def test_a_variable_is_passed_as_it_was_written(target: str, variable: str, option: str, value: str) -> None:
    for words in (last_command(target, f"{variable}={value}"), last_command(target, **{variable: value})):
        assert words[words.index(option) + 1] == value


def test_without_a_variable_there_is_no_option() -> None:
    assert last_command("demo") == [".venv/bin/python", "-m", "demo"]
