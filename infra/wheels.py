"""Build two wheels: orchard-airflow from plugins/ and dags/, and orchard-local-aws from local_aws/.

The version, the supported Python and the dependencies are those of pyproject.toml. Two builds of the same files give
the same bytes. The build needs a PyPI index, from which uv installs the build backend.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
UV = ROOT / ".uv/bin/uv"
OUTPUT = ROOT / "build/wheel"
# Exact, because another version may write other bytes.
BACKEND = "hatchling==1.33.0"
# Its wheel has the jars of S3A, but it requires another PySpark than the local AWS. An installer would refuse both
# together, so that users install it without its dependencies: see local_aws/README.md.
INSTALLED_WITHOUT_DEPENDENCIES = "sagemaker-pyspark"
DAGS_PACKAGE = "orchard_dags"
DAGS_DOCSTRING = '"""The DAGs of Orchard. An import of its modules defines them."""\n'
EXAMPLE = """\
example:
  python -m infra.wheels --output build/wheel
"""


class BuildFailed(RuntimeError):
    """The build backend reports an error."""


@dataclass(frozen=True)
class Distribution:
    """What a wheel consists of. Paths are relative to the project's folder.

    `sources` maps the names in the wheel to files and folders. `scripts` and `plugins` map names to objects: console
    scripts, and plugins that Airflow loads (https://packaging.python.org/en/latest/specifications/entry-points/).
    """

    name: str
    description: str
    readme: str
    sources: Mapping[str, str]
    dependencies: tuple[str, ...]
    scripts: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)


def read_project(root: Path = ROOT) -> dict[str, Any]:
    """Return the content of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())


def distributions(project: Mapping[str, Any]) -> tuple[Distribution, Distribution]:
    """Return the two wheels of a project, orchard-airflow first."""
    local_aws = project["dependency-groups"]["local-aws"]
    return (
        Distribution(
            name="orchard-airflow",
            description="The DAGs and the plugin of Orchard for Apache Airflow: image features by Spark on Amazon EMR",
            readme="README.md",
            sources={
                "orchard": "plugins/orchard",
                "orchard_plugin.py": "plugins/orchard_plugin.py",
                DAGS_PACKAGE: "dags",
            },
            dependencies=tuple(project["project"]["dependencies"]),
            plugins={"orchard": "orchard_plugin:OrchardPlugin"},
        ),
        Distribution(
            name="orchard-local-aws",
            description="A local AWS for development and tests, whose EMR really runs Spark steps",
            readme="local_aws/README.md",
            sources={"local_aws": "local_aws"},
            dependencies=tuple(text for text in local_aws if not text.startswith(INSTALLED_WITHOUT_DEPENDENCIES)),
            scripts={"local-aws": "local_aws.__main__:main"},
        ),
    )


def build_settings(distribution: Distribution, project: Mapping[str, Any]) -> str:
    """Return the text of the pyproject.toml from which the backend builds a wheel."""

    def table(name: str, entries: Mapping[str, Any]) -> str:
        # These values are written the same way in JSON and in TOML.
        lines = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in entries.items())
        return f"[{name}]\n{lines}\n" if entries else ""

    return "".join(
        (
            table("build-system", {"requires": [BACKEND], "build-backend": "hatchling.build"}),
            table(
                "project",
                {
                    "name": distribution.name,
                    "version": project["project"]["version"],
                    "description": distribution.description,
                    "readme": "README.md",
                    "license": "Apache-2.0",
                    "license-files": ["LICENSE", "NOTICE"],
                    "requires-python": project["project"]["requires-python"],
                    "dependencies": list(distribution.dependencies),
                },
            ),
            table("project.scripts", distribution.scripts),
            table('project.entry-points."airflow.plugins"', distribution.plugins),
            table(
                "tool.hatch.build.targets.wheel",
                # 2.4 is the first version with license files. Package indexes and installers lag behind the last one.
                {"core-metadata-version": "2.4", "include": [f"/{name}" for name in distribution.sources]},
            ),
        )
    )


def build(distribution: Distribution, output: Path, root: Path = ROOT) -> Path:
    """Build a wheel into the folder `output`, and return its path.

    Raises:
        BuildFailed: uv or the backend reports an error.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        stage = Path(folder)
        (stage / "pyproject.toml").write_text(build_settings(distribution, read_project(root)))
        for name, source in {
            **distribution.sources,
            "README.md": distribution.readme,
            "LICENSE": "LICENSE",
            "NOTICE": "NOTICE",
        }.items():
            if (root / source).is_dir():
                shutil.copytree(root / source, stage / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(root / source, stage / name)
        if DAGS_PACKAGE in distribution.sources:
            (stage / DAGS_PACKAGE / "__init__.py").write_text(DAGS_DOCSTRING)
        built = stage / "built"
        # Not for the Python of the environment: a wheel of pure Python is the same for all.
        command = [str(UV), "build", "--quiet", "--wheel", "--no-config", "--out-dir", str(built), str(stage)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildFailed(f"cannot build {distribution.name}: {done.stderr.strip()}")
        (wheel,) = built.glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, output / wheel.name))


def main(argv: list[str] | None = None) -> int:
    """Build both wheels, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.wheels",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the wheels (default: build/wheel)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for distribution in distributions(read_project()):
            log.info("built %s", build(distribution, arguments.output))
    except (BuildFailed, OSError) as error:
        log.error("failed: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
