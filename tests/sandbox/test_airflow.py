import json
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sandbox import airflow
from tests.servers import serving


def test_the_environment_of_airflow_contains_nothing_of_a_real_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("ORCHARD_SUBNET_IDS", "subnet-real")
    env = airflow.airflow_environment(tmp_path, "http://127.0.0.1:5000", "0123456789ab")
    assert env["AWS_ENDPOINT_URL"] == "http://127.0.0.1:5000"
    assert not {"AWS_PROFILE", "AIRFLOW__CORE__EXECUTOR", "ORCHARD_SUBNET_IDS"} & env.keys()


@pytest.mark.parametrize(("options", "poll_seconds"), [("", "2"), ("--like-emr", None)])
def test_a_local_aws_that_is_like_emr_is_polled_with_the_default_of_orchard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, poll_seconds: str | None
) -> None:
    monkeypatch.setenv("LOCAL_AWS_OPTIONS", options)
    env = airflow.airflow_environment(tmp_path, "http://127.0.0.1:5000", "0123456789ab")
    assert env.get("ORCHARD_POLL_SECONDS") == poll_seconds


def test_only_the_user_can_read_the_password(tmp_path: Path) -> None:
    file = tmp_path / "passwords.json"
    password = airflow.write_password(file)
    assert json.loads(file.read_text()) == {airflow.USER: password}
    assert file.stat().st_mode & 0o777 == 0o600


class RestApi(BaseHTTPRequestHandler):
    """Records each request, and responds with a token, a run, or an error."""

    requests: list[tuple[str, str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, self.headers.get("Authorization", ""), body))
        if self.path == "/auth/token":
            self.respond(201, {"access_token": "t0ken"})
        elif "bad" in body["conf"]:
            self.respond(400, {"detail": "bad is not a param"})
        else:
            self.respond(200, {"dag_run_id": "manual__1"})

    def respond(self, status: int, content: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def requests() -> list[tuple[str, str, Any]]:
    return []


@pytest.fixture
def api(requests: list[tuple[str, str, Any]]) -> Iterator[airflow.AirflowApi]:
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (RestApi,), {"requests": requests}))
    with serving(server):
        yield airflow.AirflowApi.log_in(server.server_port, "secret")


def test_a_run_is_triggered_with_its_params_and_its_logical_date(
    api: airflow.AirflowApi, requests: list[tuple[str, str, Any]]
) -> None:
    assert api.trigger("fruit_features", {"n_components": 3}) == "manual__1"
    assert api.trigger("fruit_features", {}, datetime(2026, 11, 22, 2, tzinfo=UTC)) == "manual__1"
    path, token = "/api/v2/dags/fruit_features/dagRuns", "Bearer t0ken"
    assert requests == [
        ("/auth/token", "", {"username": "admin", "password": "secret"}),
        (path, token, {"logical_date": None, "conf": {"n_components": 3}}),
        (path, token, {"logical_date": "2026-11-22T02:00:00+00:00", "conf": {}}),
    ]


def test_the_error_about_a_rejected_request_contains_the_reason(api: airflow.AirflowApi) -> None:
    with pytest.raises(airflow.RequestFailed, match=r"POST dags/d/dagRuns: HTTP 400: .*bad is not a param"):
        api.trigger("d", {"bad": 1})


def test_a_run_id_is_quoted_in_paths() -> None:
    path = airflow.run_path("fruit_features", "manual__2026-11-22T02:00:00+00:00")
    assert path == "dags/fruit_features/dagRuns/manual__2026-11-22T02%3A00%3A00%2B00%3A00"
