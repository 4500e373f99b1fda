"""The requirements file for an existing Airflow, which agrees with Airflow's constraints."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.airflow_requirements import CONSTRAINTS, RAISED, ROOT, UV, lines, read_pins, requirements

REQUIREMENTS = ROOT / "infra/airflow_requirements.txt"
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
PINS = read_pins(CONSTRAINTS.read_text())
AIRFLOW = "3.3.1"  # whose constraints these are


def resolve(constraints: dict[str, str], folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Let uv resolve the file together with Airflow and with constraints."""
    (folder / "requirements.txt").write_text(f"{REQUIREMENTS.read_text()}apache-airflow=={AIRFLOW}\n")
    (folder / "constraints.txt").write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
    command = [
        *(str(UV), "pip", "compile", "--quiet", "--no-config", "--no-annotate", "--no-header"),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28"),
        *("--constraints", str(folder / "constraints.txt"), str(folder / "requirements.txt")),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_what_the_lock_file_and_the_constraints_give() -> None:
    assert requirements() == REQUIREMENTS.read_text()


def test_every_dependency_except_airflow_is_in_the_file_and_allows_the_version_of_the_constraints() -> None:
    written = {item.name: item for item in map(Requirement, REQUIREMENTS.read_text().splitlines()[3:])}
    for dependency in map(Requirement, DEPENDENCIES):
        name = canonicalize_name(dependency.name)
        if name == "apache-airflow":
            assert name not in written
            assert AIRFLOW in dependency.specifier
            continue
        assert written[name].extras == dependency.extras
        if name in PINS and name not in RAISED:
            assert PINS[name] in written[name].specifier
        else:
            (pin,) = written[name].specifier
            assert pin.operator == "=="
            assert pin.version in dependency.specifier


def test_only_packages_of_the_constraints_have_a_range() -> None:
    locked = {"extra-package": "1.2", "orchard-needs": "3.1", "pyiceberg": "0.12.0", "transitive": "7"}
    constraints = {"orchard-needs": "2.5", "pyiceberg": "0.11.1", "transitive": "6"}
    found = lines(["orchard_needs[a]>=2,<4", "pyiceberg[glue]==0.12.*"], locked, constraints)
    assert found == ["extra-package==1.2", "orchard-needs[a]<4,>=2", "pyiceberg[glue]==0.12.0"]


@pytest.mark.parametrize("page", ["helm.md", "mwaa.md"])
def test_the_pages_take_exactly_these_packages_out_of_the_constraints(page: str) -> None:
    (pattern,) = re.findall(r"sed (?:-i )?-E '/(.+)/d'", (ROOT / "docs" / page).read_text())
    taken_out = {name for name, version in PINS.items() if re.search(pattern, f"{name}=={version}")}
    assert taken_out == set(RAISED)


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_it_resolves_with_the_constraints_of_airflow(tmp_path: Path, python: str) -> None:
    constraints = {name: version for name, version in PINS.items() if name not in RAISED}
    if python == "3.11":
        del constraints["numpy"]  # the constraints are for Python 3.12, and this version needs 3.12
    done = resolve(constraints, tmp_path, python)
    assert done.returncode == 0, done.stderr
    resolved = read_pins(done.stdout)
    assert resolved["apache-airflow"] == AIRFLOW
    assert {name: resolved[name] for name in constraints.keys() & resolved.keys()} == {
        name: constraints[name] for name in constraints.keys() & resolved.keys()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kept", RAISED)
def test_each_package_that_is_taken_out_of_the_constraints_conflicts_with_them(tmp_path: Path, kept: str) -> None:
    constraints = {name: version for name, version in PINS.items() if name not in RAISED or name == kept}
    done = resolve(constraints, tmp_path, "3.12")
    assert done.returncode != 0
    assert f"{kept}==" in done.stderr
