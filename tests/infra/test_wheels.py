"""The wheels orchard-airflow and orchard-local-aws, and what they do in an environment of their own."""

import email
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from infra.airflow_requirements import CONSTRAINTS, RAISED, read_pins
from infra.wheels import ROOT, UV, BuildFailed, Distribution, build, distributions, main, read_project
from sandbox.processes import free_port

PROJECT = read_project()
AIRFLOW, LOCAL_AWS = distributions(PROJECT)
README = (ROOT / "local_aws/README.md").read_text()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels by the name of their distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    return {distribution.name: build(distribution, folder) for distribution in (AIRFLOW, LOCAL_AWS)}


def files_in(wheel: Path) -> set[str]:
    """Return the files of a wheel outside of its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def read(wheel: Path, name: str) -> str:
    """Return a file of a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def metadata(wheel: Path) -> Message:
    return email.message_from_string(read(wheel, "METADATA"))


def hashes(wheels: Iterable[Path]) -> dict[str, str]:
    """Return the hash of each wheel by its name."""
    return {wheel.name: hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}


def tracked(*folders: str) -> set[str]:
    """Return the files of folders that belong to the project, and no generated ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


class TestContent:
    def test_orchard_airflow_has_every_file_of_plugins_and_dags(self, wheels: dict[str, Path]) -> None:
        plugins = {path.removeprefix("plugins/") for path in tracked("plugins")} - {".airflowignore"}
        dags = {f"orchard_{path}" for path in tracked("dags")}
        assert files_in(wheels["orchard-airflow"]) == plugins | dags | {"orchard_dags/__init__.py"}
        assert {"orchard/cluster/prices.json", "orchard/report/static/report.css"} <= plugins

    def test_orchard_local_aws_has_every_file_of_local_aws_and_no_other(self, wheels: dict[str, Path]) -> None:
        assert files_in(wheels["orchard-local-aws"]) == tracked("local_aws")
        assert {"local_aws/page.html", "local_aws/objects.html"} <= files_in(wheels["orchard-local-aws"])

    @pytest.mark.parametrize("distribution", [AIRFLOW, LOCAL_AWS], ids=lambda item: item.name)
    def test_the_metadata_are_those_of_the_project(self, wheels: dict[str, Path], distribution: Distribution) -> None:
        wheel = wheels[distribution.name]
        found = metadata(wheel)
        assert found["Name"] == distribution.name
        assert found["Version"] == PROJECT["project"]["version"]
        assert found["Requires-Python"] == PROJECT["project"]["requires-python"]
        assert found["License-Expression"] == "Apache-2.0"
        assert found.get_payload() == (ROOT / distribution.readme).read_text()
        for name in ("LICENSE", "NOTICE"):
            assert read(wheel, f"licenses/{name}") == (ROOT / name).read_text()

    def test_orchard_airflow_requires_what_the_project_requires(self, wheels: dict[str, Path]) -> None:
        required = {Requirement(text) for text in metadata(wheels["orchard-airflow"]).get_all("Requires-Dist", [])}
        assert required == {Requirement(text) for text in PROJECT["project"]["dependencies"]}

    def test_orchard_local_aws_requires_the_group_of_the_project_without_sagemaker(
        self, wheels: dict[str, Path]
    ) -> None:
        group = {Requirement(text) for text in PROJECT["dependency-groups"]["local-aws"]}
        (sagemaker,) = {item for item in group if item.name == "sagemaker-pyspark"}
        required = {Requirement(text) for text in metadata(wheels["orchard-local-aws"]).get_all("Requires-Dist", [])}
        assert required == group - {sagemaker}
        # The README and the message about missing jars name the version that is missing here.
        assert f"pip install --no-deps {sagemaker}" in README
        assert f"pip install --no-deps {sagemaker}`" in (ROOT / "local_aws/emr/node.py").read_text()

    def test_the_wheels_allow_the_versions_of_the_lock_file(self) -> None:
        locked = dict(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', (ROOT / "uv.lock").read_text()))
        for item in map(Requirement, (*AIRFLOW.dependencies, *LOCAL_AWS.dependencies)):
            assert locked[item.name] in item.specifier

    def test_airflow_finds_the_plugin_and_the_shell_the_program(self, wheels: dict[str, Path]) -> None:
        plugin = read(wheels["orchard-airflow"], "entry_points.txt").split()
        assert plugin == ["[airflow.plugins]", "orchard", "=", "orchard_plugin:OrchardPlugin"]
        program = read(wheels["orchard-local-aws"], "entry_points.txt").split()
        assert program == ["[console_scripts]", "local-aws", "=", "local_aws.__main__:main"]

    def test_the_program_builds_both_wheels_again_with_the_same_bytes(
        self, wheels: dict[str, Path], tmp_path: Path
    ) -> None:
        assert main(["--output", str(tmp_path / "new/out")]) == 0
        assert hashes((tmp_path / "new/out").iterdir()) == hashes(wheels.values())
        version = PROJECT["project"]["version"]
        names = {f"orchard_{name}-{version}-py3-none-any.whl" for name in ("airflow", "local_aws")}
        assert set(hashes(wheels.values())) == names

    def test_a_checkout_with_other_times_and_permissions_gives_the_same_bytes(
        self, wheels: dict[str, Path], tmp_path: Path
    ) -> None:
        checkout = tmp_path / "checkout"
        for path in tracked("dags", "local_aws", "plugins", "LICENSE", "NOTICE", "README.md", "pyproject.toml"):
            (checkout / path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(ROOT / path, checkout / path)
            (checkout / path).chmod(0o600)
            os.utime(checkout / path, (0, 1_700_000_000))
        built = [build(distribution, tmp_path / "out", checkout) for distribution in (AIRFLOW, LOCAL_AWS)]
        assert hashes(built) == hashes(wheels.values())


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "LICENSE", "NOTICE", "README.md", "local_aws"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    settings = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(
        re.sub(r'^version = ".*"', 'version = "one"', settings, flags=re.MULTILINE)
    )
    with pytest.raises(BuildFailed, match=r"cannot build orchard-local-aws: (.|\n)*`?one`?"):
        build(LOCAL_AWS, tmp_path / "out", tmp_path)


def clean_environment(**variables: str) -> dict[str, str]:
    """Return an environment in which Python finds nothing of this project, and programs no Airflow and no AWS."""
    unwanted = ("AIRFLOW_", "AWS_", "ORCHARD_", "PYTHON", "PYSPARK_", "SPARK_", "JAVA_", "VIRTUAL_ENV", "UV_", "LOCAL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true", **variables}


def run(*command: str, cwd: Path, env: dict[str, str]) -> str:
    """Run a command, and return its output."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def blocks(title: str) -> list[str]:
    """Return the indented blocks of code below a title of local_aws/README.md."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^ {4}.*\n)+", section, re.M)]


class Served(NamedTuple):
    """The port and the log of a running local AWS, and its end when the jars of S3A were not installed yet."""

    port: str
    log: str
    without_jars: "subprocess.CompletedProcess[str]"


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def local_aws(wheels: dict[str, Path], empty_folder: Path) -> Iterator[Served]:
    """The local AWS as its README installs and starts it."""
    # uv stands for pip, because it has the packages in a cache.
    port = str(free_port())
    _, commands = blocks("Start the server")
    changed = {
        ".venv/bin/pip install": f"{UV} pip install --quiet --python .venv/bin/python",
        "/path/to/orchard/build/wheel/orchard_local_aws-*.whl": str(wheels["orchard-local-aws"]),
        "--port 5000": f"--port {port}",
    }
    for text, other in changed.items():
        assert text in commands
        commands = commands.replace(text, other)
    create, install, install_jars, start = [line.partition("  #")[0].strip() for line in commands.splitlines()]
    for command in (create, install):
        run("bash", "-c", command, cwd=empty_folder, env=clean_environment())
    refused = subprocess.run(
        shlex.split(start), cwd=empty_folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    run("bash", "-c", install_jars, cwd=empty_folder, env=clean_environment())
    log = empty_folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(shlex.split(start), cwd=empty_folder, env=clean_environment(), stderr=stderr)
    try:
        deadline = time.monotonic() + 60
        while "serving on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Served(port, log.read_text(), refused)
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.slow
def test_the_first_commands_of_the_readme_of_the_local_aws_run_in_an_empty_folder(
    local_aws: Served, empty_folder: Path
) -> None:
    assert f"serving on http://127.0.0.1:{local_aws.port}, data in build/aws" in local_aws.log
    assert local_aws.without_jars.returncode == 1
    (line,) = local_aws.without_jars.stderr.splitlines()
    assert "pip install --no-deps sagemaker-pyspark==" in line
    connect, example, *_ = blocks("Connect clients")
    script = f"{connect}\n{example}".replace("5000", local_aws.port).replace("/tmp/hello.py", "hello.py")
    before, after = script.split("aws emr create-cluster", 1)
    creation, after = re.split(r"(?<!\\)\n", after, maxsplit=1)
    script = (
        f"set -eu\nshopt -s expand_aliases\n{before}"
        f"id=$(aws emr create-cluster {creation} --query ClusterId --output text)\n{after.replace('j-...', '$id')}"
    )
    output = run("bash", "-c", script, cwd=empty_folder, env=clean_environment())
    (state,) = re.findall(r'"State": "(\w+)"', output)
    assert state == "COMPLETED"
    assert re.search(r"logs/j-\w+/steps/s-\w+/stdout\.gz", output)
    stdout = next((empty_folder / "build/aws/clusters").glob("*/var/log/hadoop/steps/*/stdout")).read_text()
    assert re.match(r"hello from /\S+/python3", stdout)


def with_constraints(folder: Path) -> list[str]:
    """Return the arguments that install the requirements into an Airflow with its own constraints, as the pages say."""
    # The constraints are for Python 3.12, and this version of numpy needs it.
    pins = {name: pin for name, pin in read_pins(CONSTRAINTS.read_text()).items() if name not in (*RAISED, "numpy")}
    (folder / "constraints.txt").write_text("".join(f"{name}=={pin}\n" for name, pin in pins.items()))
    return ["-c", "constraints.txt", "-r", str(ROOT / "infra/airflow_requirements.txt"), "apache-airflow==3.3.1"]


@pytest.mark.slow
@pytest.mark.parametrize("constrained", [False, True], ids=["newest packages", "constraints of Airflow"])
def test_airflow_loads_the_dags_and_the_plugin_of_the_wheel(
    wheels: dict[str, Path], empty_folder: Path, constrained: bool
) -> None:
    env = clean_environment()
    run(str(UV), "venv", "--quiet", "--python", "3.11", ".venv", cwd=empty_folder, env=env)
    install = [str(UV), "pip", "install", "--quiet", "--python", ".venv/bin/python", str(wheels["orchard-airflow"])]
    run(*install, *(with_constraints(empty_folder) if constrained else ()), cwd=empty_folder, env=env)
    page = (ROOT / "docs/helm.md").read_text()
    (loader,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (empty_folder / "dags").mkdir()
    (empty_folder / "dags/load_orchard.py").write_text(loader)
    python = str(empty_folder / ".venv/bin/python")
    folder = run(python, "-c", "import orchard_dags; print(orchard_dags.__path__[0])", cwd=empty_folder, env=env)
    assert folder.startswith(str(empty_folder / ".venv"))
    bundles = [
        {"name": name, "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {"path": path}}
        for name, path in (("loader", str(empty_folder / "dags")), ("package", folder.strip()))
    ]
    env |= {
        "AIRFLOW_HOME": str(empty_folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        "ORCHARD_BUCKET": "fruits-data",
        "ORCHARD_RELEASE": "0123456789ab",
    }
    airflow = str(empty_folder / ".venv/bin/airflow")
    run(airflow, "db", "migrate", cwd=empty_folder, env=env)
    names = {path.stem for path in (ROOT / "dags").glob("*.py")}
    for bundle in ("loader", "package"):
        command = (airflow, "dags", "list", "--local", "--bundle-name", bundle, "--output", "json")
        listed = json.loads(run(*command, cwd=empty_folder, env=env).splitlines()[-1])
        assert {dag["dag_id"] for dag in listed} == names
    (plugin,) = json.loads(run(airflow, "plugins", "--output", "json", cwd=empty_folder, env=env).splitlines()[-1])
    assert plugin["source"].startswith(f"orchard-airflow=={PROJECT['project']['version']}")
    assert [app["url_prefix"] for app in plugin["fastapi_apps"]] == ["/orchard"]
    assert {view["destination"] for view in plugin["external_views"]} == {"dag", "dag_run"}
    # The DagBag of Airflow, and the pages of the plugin with their templates, styles and scripts.
    code = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        "from orchard.report.app import app\n"
        "from orchard.report.pages import STATIC, TEMPLATES\n"
        "bag = DagBag('dags', bundle_name='loader')\n"
        "TEMPLATES.get_template('page.html')\n"
        "print(sorted(bag.dags), bag.import_errors, all(file.is_file() for file in STATIC.values()))\n"
    )
    assert run(python, "-c", code, cwd=empty_folder, env=env).splitlines()[-1] == f"{sorted(names)} {{}} True"
