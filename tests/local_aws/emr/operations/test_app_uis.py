"""The persistent application UI of a cluster, of which `tests/local_aws/emr/test_history.py` opens a real one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local_aws.emr import daemon, history
from local_aws.server import LocalAws
from tests.local_aws.java import PORT, SERVES, Java
from tests.local_aws.user import ROLES, User, is_running, refusal, wait_for_death, wait_until

if TYPE_CHECKING:
    from mypy_boto3_emr.type_defs import PersistentAppUITypeDef


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Java:
    monkeypatch.setattr(daemon, "JAVA_HOME", tmp_path)
    monkeypatch.setattr(history, "LISTING_SECONDS", 0)
    found = Java(tmp_path)
    found.behave(SERVES)
    return found


@pytest.fixture(scope="module")
def cluster_ids(user: User) -> list[str]:
    """Three clusters that have terminated: their UIs stay."""
    return [user.run() for _ in range(3)]


@pytest.fixture(autouse=True)
def no_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").emr.history.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with LocalAws(tmp_path_factory.mktemp("uis")) as started:
        yield started


@pytest.fixture(scope="module")
def user(server: LocalAws) -> User:
    return User(server.endpoint_url)


def create(user: User, cluster_id: str, **parameters: Any) -> str:
    arn = user.cluster(cluster_id)["ClusterArn"]
    return user.emr.create_persistent_app_ui(TargetResourceArn=arn, **parameters)["PersistentAppUIId"]


def described(user: User, app_ui_id: str) -> "PersistentAppUITypeDef":
    return user.emr.describe_persistent_app_ui(PersistentAppUIId=app_ui_id)["PersistentAppUI"]


def url(user: User, app_ui_id: str, **parameters: Any) -> str | None:
    answer = user.emr.get_persistent_app_ui_presigned_url(PersistentAppUIId=app_ui_id, **parameters)
    assert answer["PresignedURLReady"] is ("PresignedURL" in answer)
    return answer.get("PresignedURL")


def wait_for_status(user: User, app_ui_id: str, status: str) -> "PersistentAppUITypeDef":
    def arrived() -> "PersistentAppUITypeDef | None":
        found = described(user, app_ui_id)
        return found if found["PersistentAppUIStatus"] == status else None

    return wait_until(arrived, f"{app_ui_id} {status}")


def test_the_url_of_a_ui_leads_to_the_history_server_on_this_machine(
    user: User, java: Java, cluster_ids: list[str]
) -> None:
    app_ui_id = create(user, cluster_ids[0])
    assert app_ui_id == f"p-{cluster_ids[0][2:]}"
    wait_for_status(user, app_ui_id, "ATTACHED")
    assert url(user, app_ui_id, PersistentAppUIType="SHS") == f"http://127.0.0.1:{PORT}/"
    assert url(user, app_ui_id, ApplicationId="app/../1") == f"http://127.0.0.1:{PORT}/history/app%2F..%2F1/jobs/"


def test_a_ui_has_no_url_before_its_history_server_serves(user: User, java: Java, cluster_ids: list[str]) -> None:
    java.behave("exec sleep 60")
    app_ui_id = create(user, cluster_ids[0])
    java.pids(1)
    assert described(user, app_ui_id)["PersistentAppUIStatus"] == "CREATING"
    assert url(user, app_ui_id) is None


def test_a_history_server_that_ends_is_reported_with_its_output_and_starts_again(
    user: User, java: Java, cluster_ids: list[str]
) -> None:
    java.behave("echo no memory >&2; exit 1")
    app_ui_id = create(user, cluster_ids[0])
    failed = wait_for_status(user, app_ui_id, "FAILED")
    assert failed["LastStateChangeReason"].endswith("end with: no memory")
    assert url(user, app_ui_id) is None
    java.behave(SERVES)
    assert create(user, cluster_ids[0]) == app_ui_id
    wait_for_status(user, app_ui_id, "ATTACHED")


def test_a_ui_that_exists_is_not_created_twice(user: User, java: Java, cluster_ids: list[str]) -> None:
    wait_for_status(user, create(user, cluster_ids[0]), "ATTACHED")
    wait_for_status(user, create(user, cluster_ids[0]), "ATTACHED")
    assert len(java.pids(1)) == 1


def test_only_two_history_servers_run_and_that_asked_for_least_recently_stops(
    user: User, server: LocalAws, java: Java, cluster_ids: list[str]
) -> None:
    uis = []
    for number, cluster_id in enumerate(cluster_ids[:2], start=1):
        uis.append(create(user, cluster_id))
        java.pids(number)
    wait_for_status(user, uis[0], "ATTACHED")
    create(user, cluster_ids[2])
    first, second, third = java.pids(3)
    wait_for_death(second)
    assert is_running(first)
    assert is_running(third)
    server.emr.history.stop()
    for pid in (first, third):
        wait_for_death(pid)


def test_refused_requests_start_no_history_server(user: User, java: Java, cluster_ids: list[str]) -> None:
    arn = user.cluster(cluster_ids[0])["ClusterArn"]
    unknown, elsewhere = arn.replace(cluster_ids[0], "j-0000000000000"), arn.replace("eu-west-1", "us-east-1")
    calls = user.emr
    for call, parameters, message in (
        (calls.create_persistent_app_ui, {"TargetResourceArn": unknown}, "Cluster id 'j-0000000000000' is not valid."),
        (
            calls.create_persistent_app_ui,
            {"TargetResourceArn": elsewhere},
            f"Cluster id '{cluster_ids[0]}' is not valid.",
        ),
        (
            calls.create_persistent_app_ui,
            {"TargetResourceArn": f"{arn}/../x"},
            f"TargetResourceArn '{arn}/../x' is not the ARN of a cluster.",
        ),
        (
            calls.create_persistent_app_ui,
            {"TargetResourceArn": arn, "ProfilerType": "TEZUI"},
            "local_aws has no persistent application UI of type TEZUI: use SHS, Spark's history server",
        ),
        *(
            (call, {"PersistentAppUIId": name}, f"Persistent application UI id '{name}' is not valid.")
            for call in (calls.describe_persistent_app_ui, calls.get_persistent_app_ui_presigned_url)
            for name in ("p-0000000000000", cluster_ids[0])
        ),
        (
            calls.get_persistent_app_ui_presigned_url,
            {"PersistentAppUIId": f"p-{cluster_ids[0][2:]}", "PersistentAppUIType": "YTS"},
            "local_aws has no persistent application UI of type YTS: use SHS, Spark's history server",
        ),
    ):
        assert refusal(call, **parameters) == ("InvalidRequestException", message), parameters
    create(user, cluster_ids[0])
    assert len(java.pids(1)) == 1, "only the last one"


def test_the_history_servers_are_stopped_with_the_local_aws(tmp_path: Path, java: Java) -> None:
    with LocalAws(tmp_path / "data") as own:
        user = User(own.endpoint_url)
        create(user, user.start(**ROLES))
        (pid,) = java.pids(1)
    wait_for_death(pid)
