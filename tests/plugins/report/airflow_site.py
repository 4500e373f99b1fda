"""Airflow's API server in this process, with Orchard's plugin, users of several roles, and runs in its database."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow import plugins_manager
from airflow import settings as airflow_settings
from airflow.api_fastapi import app as airflow_app
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dag_version import DagVersion
from airflow.models.dagbag import DBDagBag
from airflow.models.dagbundle import DagBundleModel
from airflow.models.xcom import XComModel
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from fastapi import FastAPI
from fastapi.testclient import TestClient

from orchard.report import aws, content

DAG_ID, OTHER_DAG = "fruit_features", "emr_janitor"
DAGS = Path(__file__).parents[3] / "dags"
# As behind a proxy that serves Airflow below a path.
BASE_PATH = "/airflow"
BASE_URL = f"http://testserver{BASE_PATH}"
# The user `nobody` has no role, and so no right to any DAG.
ROLES = {"viewer": "viewer", "admin": "admin", "nobody": ""}
START = datetime(2026, 11, 22, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Site:
    """The API server, and a client for each user. `anonymous` has not logged in."""

    app: FastAPI
    anonymous: TestClient
    users: Mapping[str, TestClient] = field(default_factory=dict)

    @property
    def viewer(self) -> TestClient:
        return self.users["viewer"]


@contextmanager
def airflow_database(folder: Path) -> Iterator[None]:
    """While the context is open, Airflow in this process uses a new database."""
    orm: Any = airflow_settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{folder}/airflow.db")
        orm.configure_vars()
        orm.reconfigure_orm()
        with create_session() as session:
            initdb(session=session)
            session.add(DagBundleModel(name="dags-folder"))
        try:
            yield
        finally:
            orm.dispose_orm()
    orm.configure_vars()
    orm.configure_orm()


@contextmanager
def airflow_site(folder: Path) -> Iterator[Site]:
    """Serve Airflow with Orchard's plugin below BASE_PATH while the context is open."""
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps({name: f"password of {name}" for name in ROLES}))
    variables = {
        "AIRFLOW__API__BASE_URL": BASE_URL,
        "AIRFLOW__API__SECRET_KEY": "0" * 32,
        "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in ROLES.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW_CONN_AWS_DEFAULT": "aws://",
    }
    with pytest.MonkeyPatch.context() as patch, airflow_database(folder):
        for name, value in variables.items():
            patch.setenv(name, value)
        # Airflow sets these when it is imported.
        patch.setattr(airflow_app, "API_ROOT_PATH", f"{BASE_PATH}/")
        airflow_app.purge_cached_app()
        forget_plugins()
        app = airflow_app.create_app("core")
        with TestClient(app, base_url=BASE_URL.removesuffix(BASE_PATH), raise_server_exceptions=False) as anonymous:
            yield Site(app, anonymous, {name: logged_in(app, anonymous, name) for name in ROLES})
        airflow_app.purge_cached_app()
        forget_plugins()


def forget_plugins() -> None:
    """Let Airflow load the plugins again: Orchard's reads the base path when it is loaded."""
    plugins_manager._get_plugins.cache_clear()
    plugins_manager._get_ui_plugins.cache_clear()
    plugins_manager.get_fastapi_plugins.cache_clear()


def logged_in(app: FastAPI, anonymous: TestClient, user: str) -> TestClient:
    """Return a client with the cookie of a user, as a browser has it after the login form."""
    answer = anonymous.post(f"{BASE_PATH}/auth/token", json={"username": user, "password": f"password of {user}"})
    assert answer.status_code == 201, answer.text
    token = answer.json()["access_token"]
    return TestClient(
        app, base_url=BASE_URL.removesuffix(BASE_PATH), cookies={"_token": token}, raise_server_exceptions=False
    )


def load_dags() -> None:
    """Write the DAGs into Airflow's database, as its DAG processor does."""
    bag = DagBag(str(DAGS), bundle_name="dags-folder", bundle_path=DAGS)
    assert bag.import_errors == {}
    with create_session() as session:
        sync_bag_to_db(bag, "dags-folder", None, session=session)


def add_run(
    run_id: str,
    *,
    dag_id: str = DAG_ID,
    state: str = "success",
    run_after: datetime = START,
    tasks: Mapping[str, str] | None = None,
    xcoms: Mapping[tuple[str, str], Any] | None = None,
) -> str:
    """Add a run to Airflow's database, and return its run_id.

    `tasks` are the states of tasks; the others have the state "success" in a successful run, else none. Each task that
    has a state has taken a minute. `xcoms` are values by task and key, as tasks have stored them.
    """
    with create_session() as session:
        version = DagVersion.get_latest_version(dag_id, session=session)
        dag: Any = DBDagBag().get_dag(version.id, session=session)  # type: ignore[union-attr]
        run = dag.create_dagrun(
            run_id=run_id,
            run_after=run_after,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=state,
            start_date=run_after,
            session=session,
        )
        run.end_date = run_after + timedelta(minutes=9) if state in ("success", "failed") else None
        for instance in run.get_task_instances(session=session):
            found = (tasks or {}).get(instance.task_id, "success" if state == "success" else None)
            if found is None:
                continue
            instance.state = found
            instance.start_date = run_after
            instance.end_date = run_after + timedelta(minutes=1) if found in ("success", "failed") else None
        session.flush()
        for (task_id, key), value in (xcoms or {}).items():
            where: Any = {"dag_id": dag_id, "task_id": task_id, "run_id": run_id}
            XComModel.set(key, value, **where, serialize=False, session=session)
    return run_id


def forget() -> None:
    """Make the report forget its settings, its clients and what it has read."""
    for module in (aws, content):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """While the context is open, the API server has other environment variables. None removes one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        forget()
        yield
    forget()
