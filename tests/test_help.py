"""Every program of the project explains itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LISTED = subprocess.run(
    ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
PROGRAMS = [
    file for file in LISTED if not file.startswith("tests/") and '__name__ == "__main__"' in (ROOT / file).read_text()
]


def test_the_programs_are_found() -> None:
    assert {"demo/__main__.py", "spark/ingest.py", "docker/provision.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("file", PROGRAMS)
def test_a_program_has_help_with_an_example(file: str) -> None:
    is_script = file.startswith(("docker/", "spark/"))
    module = file.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    command = [sys.executable, file] if is_script else [sys.executable, "-m", module]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT / 'spark'}:{ROOT}"}
    done = subprocess.run([*command, "--help"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout.lower()
