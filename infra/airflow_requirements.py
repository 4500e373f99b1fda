"""Print what Orchard needs besides Airflow, as a requirements file for an existing Airflow.

An existing Airflow is installed with Airflow's constraints
(https://airflow.apache.org/docs/apache-airflow/stable/installation/installing-from-pypi.html). This file agrees with
them: packages that they contain have the range of pyproject.toml, so that installers keep Airflow's version. All others
have the version of uv.lock, with which Orchard is tested, and so have the packages in RAISED.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
UV = ROOT / ".uv/bin/uv"
# The pins of Airflow's constraints file for the packages of Orchard's environment. The file says where they are from.
CONSTRAINTS = ROOT / "infra/airflow_constraints.txt"
AIRFLOW = ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk")
# Orchard needs later versions of these than Airflow's constraints have. Remove them from the constraints.
RAISED = ("apache-airflow-providers-amazon", "apache-airflow-providers-common-compat", "pyiceberg")
HEADER = """\
# What Orchard needs besides Airflow. `make requirements` writes this file.
# Install it with Airflow's constraints, without their lines for:
# {raised}
"""
EXAMPLE = """\
example:
  python -m infra.airflow_requirements > infra/airflow_requirements.txt
"""


def read_pins(text: str) -> dict[str, str]:
    r"""Return the versions of a requirements or constraints file by the normalised name of the package.

    >>> read_pins("# via pip\nPyYAML==6.0.3\nnumpy==2.4.6 ; sys_platform == 'linux'")
    {'pyyaml': '6.0.3', 'numpy': '2.4.6'}
    """
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def locked_pins() -> dict[str, str]:
    """Return the versions in uv.lock of what Orchard needs, without Airflow and what only Airflow needs."""
    prune = [word for name in AIRFLOW for word in ("--prune", name)]
    command = [str(UV), "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--no-hashes"]
    done = subprocess.run([*command, *prune], cwd=ROOT, capture_output=True, text=True, check=True)
    return read_pins(done.stdout)


def lines(dependencies: Iterable[str], locked: Mapping[str, str], constraints: Mapping[str, str]) -> list[str]:
    """Return the lines of the requirements file.

    Args:
        dependencies: the requirements in pyproject.toml.
        locked: the versions in uv.lock of the packages that Orchard needs.
        constraints: the versions in Airflow's constraints.
    """
    direct: dict[str, Requirement] = {canonicalize_name(item.name): item for item in map(Requirement, dependencies)}
    found = []
    for name in sorted(locked):
        extras = f"[{','.join(sorted(direct[name].extras))}]" if name in direct and direct[name].extras else ""
        if name in RAISED or name not in constraints:
            found.append(f"{name}{extras}=={locked[name]}")
        elif name in direct:
            found.append(f"{name}{extras}{direct[name].specifier}")
    return found


def requirements() -> str:
    """Return the text of the requirements file."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    text = "\n".join(lines(dependencies, locked_pins(), read_pins(CONSTRAINTS.read_text())))
    return f"{HEADER.format(raised=', '.join(RAISED))}{text}\n"


def main(argv: list[str] | None = None) -> int:
    """Print the requirements file, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.airflow_requirements",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    sys.stdout.write(requirements())
    return 0


if __name__ == "__main__":
    sys.exit(main())
