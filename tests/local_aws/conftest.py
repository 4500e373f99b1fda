from collections.abc import Iterator
from pathlib import Path

import pytest

from local_aws.server import LocalAws
from tests.local_aws.user import User


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its nodes."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def user(data: Path) -> Iterator[User]:
    """A user of a server that runs as long as the tests; leaving it ends the clusters that tests left waiting."""
    with LocalAws(data) as server:
        user = User(server.endpoint_url)
        user.make_bucket()
        yield user
