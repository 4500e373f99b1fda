"""The import rules of the README's layout table, which are contracts of import-linter in pyproject.toml."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "demo", "infra", "local_aws", "model", "plugins/orchard", "sandbox", "spark/orchard_spark")


def test_every_package_imports_only_what_its_layer_allows() -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT / 'spark'}:{ROOT}"}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_says_what_lives_there() -> None:
    folders = {file.parent for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, f"{folder}: write what lives there and what it may import"


def test_every_folder_is_in_the_layout_table_of_the_readme() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    folders = {path.split("/")[0] for path in listed if "/" in path and not path.startswith(".")}
    table = (ROOT / "README.md").read_text().partition("## Layout")[2].partition("## ")[0]
    missing = {folder for folder in folders if f"`{folder}/" not in table}
    assert not missing, "add a row to the layout table"
