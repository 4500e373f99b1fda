from collections.abc import Iterator

import pytest

from tests.conftest import record_calls


@pytest.fixture(scope="package", autouse=True)
def calls() -> Iterator[None]:
    with record_calls("e2e"):
        yield
