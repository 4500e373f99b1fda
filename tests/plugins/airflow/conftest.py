import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook

from local_aws.client import LocalAwsClient
from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from tests.local_aws.airflow_task import point_airflow_at
from tests.local_aws.user import LOG_URI, ROLES, User
from tests.plugins.airflow.tasks import plan_of, write_plan

# Each hook looks for its operator, whose name its user agent has, in the source code of all calls of its thread.
AwsGenericHook._get_caller = lambda *_: "Unknown"  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user of a local AWS that only the tests of a module share, because they inject faults."""
    with LocalAws(tmp_path_factory.mktemp("aws"), timings=Timings(log_delay_seconds=0.5)) as server:
        user = User(server.endpoint_url)
        user.make_bucket()
        yield user


@pytest.fixture
def local_aws(user: User, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAwsClient]:
    """Injects faults into the local AWS that Airflow's connections lead to. Removes them after the test."""
    point_airflow_at(user.endpoint_url, monkeypatch)
    client = LocalAwsClient(user.endpoint_url)
    yield client
    client.clear()


@pytest.fixture
def request_(user: User) -> dict[str, Any]:
    """The request for the cluster of a run that is planned. No other run has its name."""
    request = {
        "Name": f"orchard-{uuid.uuid4().hex}",
        "ReleaseLabel": "emr-7.14.0",
        "LogUri": LOG_URI,
        "Instances": {"InstanceCount": 1, "MasterInstanceType": "m5.xlarge", "KeepJobFlowAliveWhenNoSteps": True},
        **ROLES,
    }
    write_plan(user, plan_of(request))
    return request


@pytest.fixture(scope="module")
def cluster_id(user: User) -> str:
    """A cluster that waits for steps."""
    created = user.start(keep_alive=True)
    user.wait_for(created, "WAITING")
    return created
