from collections.abc import Iterator
from pathlib import Path

import pytest

from local_aws.client import LocalAwsClient
from local_aws.server import LocalAws
from tests.local_aws.user import User


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the shared server."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def user(data: Path) -> Iterator[User]:
    """A user of the server that all tests share."""
    with LocalAws(data) as server:
        user = User(server.endpoint_url)
        user.make_bucket()
        yield user


@pytest.fixture(scope="module")
def own(user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user of a server for one module, so that its faults do not affect other tests.

    moto's buckets belong to the process, so that the bucket of the shared server is here, too.
    """
    with LocalAws(tmp_path_factory.mktemp("own")) as server:
        yield User(server.endpoint_url)


@pytest.fixture
def local_aws(own: User) -> Iterator[LocalAwsClient]:
    client = LocalAwsClient(own.endpoint_url)
    yield client
    client.clear()


@pytest.fixture(scope="module")
def waiting(user: User) -> str:
    """The id of a WAITING cluster."""
    cluster_id = user.start(keep_alive=True)
    user.wait_for(cluster_id, "WAITING")
    return cluster_id
