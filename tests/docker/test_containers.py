"""The containers, on a Docker engine: `make test-docker`. The tests run in their order, and share the containers."""

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from sandbox import pictures
from sandbox.airflow import FINISHED, AirflowApi
from sandbox.processes import free_port, wait_until
from tests.docker import containers
from tests.docker.containers import Containers
from tests.docker.engine import docker, engine, say
from tests.docker.stand_ins.build import base_images

pytestmark = [pytest.mark.docker, pytest.mark.slow]

DAG = "fruit_features"
WEB_PORT = 8080
RUN_SECONDS = 600
KEPT_RUNNING = {"network", "postgres", "local-aws"} | {
    f"airflow-{name}" for name in ("apiserver", "scheduler", "dag-processor", "triggerer")
}
IMAGES = len(pictures.CLASSES) * pictures.PER_CLASS
MAX_AIRFLOW_MB, MAX_LOCAL_AWS_MB = 900, 1200


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    """The variables that name the base images, with an engine that has them."""
    with engine() as description:
        say(f"using {description}")
        base = base_images()
        say(f"using {base.origin}: {base.python}, {base.postgres}")
        yield {"PYTHON_IMAGE": base.python, "POSTGRES_IMAGE": base.postgres}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that was made with umask 077."""
    folder = tmp_path_factory.mktemp("checkout")
    containers.check_out(folder)
    return folder


@pytest.fixture(scope="module")
def started(checkout: Path, variables: dict[str, str]) -> Iterator[Containers]:
    """The containers with the local AWS."""
    free_port(WEB_PORT)
    with containers.containers(checkout, variables) as found:
        found.build()
        found.up()
        yield found


def log_in(password: str = "admin") -> AirflowApi:  # noqa: S107  # the default with the local AWS
    return AirflowApi.log_in(WEB_PORT, password)


def run_to_its_end(api: AirflowApi) -> tuple[str, str]:
    """Trigger a run, wait until it has ended, and return its run_id and its state."""
    say("triggering a run")
    run_id = api.trigger(DAG, {})

    def state() -> str | None:
        found = str(api.run(DAG, run_id)["state"])
        return found if found in FINISHED else None

    ended = wait_until(
        state, f"the end of {run_id}", timeout_seconds=RUN_SECONDS, interval_seconds=2, retry_on=(httpx.HTTPError,)
    )
    states = {name: task["state"] for name, task in api.tasks(DAG, run_id).items()}
    say(f"run {run_id}: {ended}" + (f", {states}" if ended == "failed" else ""))
    return run_id, ended


def size_mb(image_id: str) -> float:
    """Return the size of an image as Docker counts it, in MB."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image_id)) / 1e6


def test_all_services_are_healthy_and_the_others_have_done_their_work(started: Containers) -> None:
    states = {name: container["State"] for name, container in started.inspect().items()}
    assert {name for name, state in states.items() if state["Running"]} == KEPT_RUNNING
    assert {name: state["ExitCode"] for name, state in states.items() if not state["Running"]} == {
        "provision": 0,
        "airflow-init": 0,
    }


def test_the_images_contain_only_what_they_need(started: Containers) -> None:
    images = {name: container["Image"] for name, container in started.inspect().items()}
    sizes = {name: size_mb(images[name]) for name in ("airflow-scheduler", "local-aws")}
    say("; ".join(f"image of {name}: {size:.0f} MB" for name, size in sizes.items()))
    assert sizes["airflow-scheduler"] <= MAX_AIRFLOW_MB
    assert sizes["local-aws"] <= MAX_LOCAL_AWS_MB


def test_only_the_port_of_airflow_is_published_on_this_machine_only(started: Containers) -> None:
    bindings = {name: container["HostConfig"]["PortBindings"] for name, container in started.inspect().items()}
    assert {name: ports for name, ports in bindings.items() if ports} == {
        "network": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(WEB_PORT)}]}
    }


def test_a_run_that_the_api_triggers_waits_while_the_dag_is_paused_and_then_succeeds(started: Containers) -> None:
    api = log_in()
    assert api.call("GET", f"dags/{DAG}")["is_paused"] is True
    api.set_paused(DAG, paused=False)
    run_id, state = run_to_its_end(api)
    assert state == "success"
    summary = api.call("GET", f"dags/{DAG}/dagRuns/{quote(run_id)}/taskInstances/publish/xcomEntries/summary")["value"]
    assert (summary["images_ingested"], summary["embeddings_rows"]) == (IMAGES, IMAGES)
    report = httpx.get(
        f"{api.url}/orchard/dags/{DAG}/runs/{quote(run_id, safe='')}/",
        headers={"Authorization": f"Bearer {api.token}"},
        timeout=60,
    )
    assert report.status_code == httpx.codes.OK
    assert run_id in report.text


def test_the_aws_cli_in_the_container_lists_the_bucket(started: Containers) -> None:
    listed = started.compose("exec", "-T", "local-aws", "aws", "s3", "ls")
    assert "orchard-demo" in listed


def test_up_starts_a_local_aws_that_ended_and_the_next_run_succeeds(started: Containers) -> None:
    before = started.inspect()
    docker("kill", before["local-aws"]["Id"])
    started.up()
    after = started.inspect()
    assert {name for name, container in after.items() if container["State"]["Running"]} == KEPT_RUNNING
    starts = {name: (before[name]["State"]["StartedAt"], after[name]["State"]["StartedAt"]) for name in KEPT_RUNNING}
    assert [name for name, (first, second) in starts.items() if first != second] == ["local-aws"]
    _, state = run_to_its_end(log_in())
    assert state == "success"


def test_all_services_stop_by_themselves_and_the_database_after_airflow(started: Containers) -> None:
    say("stopping the containers")
    started.compose("stop")
    states = {name: container["State"] for name, container in started.inspect().items()}
    killed = [name for name, state in states.items() if state["ExitCode"] == 128 + signal.SIGKILL]
    assert killed == [], started.compose("logs", "--tail", "30", *killed)
    ends = {name: states[name]["FinishedAt"] for name in KEPT_RUNNING if name.startswith("airflow")}
    assert states["postgres"]["FinishedAt"] > max(ends.values())


def test_the_containers_start_again_with_the_runs_of_before(started: Containers) -> None:
    started.up()
    runs = log_in().runs(DAG)
    assert [run["state"] for run in runs] == ["success", "success"]


def test_down_with_volumes_leaves_nothing(started: Containers) -> None:
    assert all(containers.leftovers().values())
    started.compose("down", "--volumes")
    assert containers.leftovers() == {"containers": [], "networks": [], "volumes": []}


ACCOUNT = {
    "SETTINGS": "account.env",
    "ADMIN_PASSWORD": "correct-horse",
    "POSTGRES_PASSWORD": "battery-staple",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "eu-west-3",
    "ORCHARD_BUCKET": "fruits-of-an-account",
    "ORCHARD_RELEASE": "0123456789ab",
    "ORCHARD_REGION": "eu-west-3",
}


def write_account(checkout: Path, changes: dict[str, str]) -> None:
    (checkout / "account.env").write_text("".join(f"{key}={value}\n" for key, value in {**ACCOUNT, **changes}.items()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ADMIN_PASSWORD": "admin"}, "ADMIN_PASSWORD is not set, or is 'admin': set another"),
        ({"ORCHARD_BUCKET": "s3://fruits"}, "ORCHARD_BUCKET is 's3://fruits': use the name of an S3 bucket"),
        ({"ORCHARD_RELEASE": ""}, "ORCHARD_RELEASE"),
    ],
)
def test_airflow_does_not_start_with_an_account_whose_settings_are_wrong(
    checkout: Path, variables: dict[str, str], changes: dict[str, str], message: str
) -> None:
    write_account(checkout, changes)
    with containers.containers(checkout, variables, "--env-file", "account.env") as found:
        found.compose("up", "--detach", check=False, timeout_seconds=containers.UP_SECONDS)
        assert message in found.compose("logs", "provision")
        states = {name: container["State"]["Status"] for name, container in found.inspect().items()}
        # Docker Compose 1 does not even create the containers of Airflow.
        assert {state for name, state in states.items() if name.startswith("airflow-")} <= {"created"}


def test_with_a_real_account_airflow_runs_without_the_local_aws(checkout: Path, variables: dict[str, str]) -> None:
    free_port(WEB_PORT)
    write_account(checkout, {})
    with containers.containers(checkout, variables, "--env-file", "account.env") as found:
        found.up()
        running = {name for name, container in found.inspect().items() if container["State"]["Running"]}
        assert running == KEPT_RUNNING - {"local-aws"}
        api = log_in(ACCOUNT["ADMIN_PASSWORD"])
        assert api.call("GET", "importErrors")["import_errors"] == []
        params = api.call("GET", f"dags/{DAG}/details")["params"]
        assert "s3://fruits-of-an-account/" in str(params)
        environment = found.inspect()["airflow-scheduler"]["Config"]["Env"]
        assert [variable for variable in environment if variable.startswith("AWS_ENDPOINT_URL")] == []
