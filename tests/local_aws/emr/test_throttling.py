from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local_aws.emr.errors import Throttled
from local_aws.emr.life import Timings
from local_aws.emr.throttling import ACCOUNT, QUOTAS, Throttle
from local_aws.server import LocalAws
from sandbox import aws


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def accepted(throttle: Throttle, operation: str, requests: int) -> int:
    """Return how many of the requests are accepted."""
    count = 0
    for _ in range(requests):
        try:
            throttle.check(operation)
            count += 1
        except Throttled:
            pass
    return count


@pytest.mark.parametrize("operation", QUOTAS)
def test_an_operation_may_be_called_as_often_as_its_burst_and_then_at_its_rate(operation: str, clock: Clock) -> None:
    throttle, quota = Throttle(clock), QUOTAS[operation]
    assert accepted(throttle, operation, 40) == quota.burst
    clock.seconds += 1 / quota.per_second
    assert accepted(throttle, operation, 40) == 1
    clock.seconds += 1000
    assert accepted(throttle, operation, 40) == quota.burst


def test_all_operations_together_have_the_rate_of_the_account(clock: Clock) -> None:
    throttle = Throttle(clock)
    names = ["ListClusters", "DescribeCluster", "ListReleaseLabels"]
    assert sum(accepted(throttle, name, 20) for name in names) == ACCOUNT.burst
    clock.seconds += 1
    assert accepted(throttle, "ListReleaseLabels", 20) == ACCOUNT.per_second


def test_a_rejected_request_takes_no_token_of_the_account(clock: Clock) -> None:
    throttle = Throttle(clock)
    accepted(throttle, "AddTags", 40)
    assert accepted(throttle, "ListReleaseLabels", 40) == ACCOUNT.burst - QUOTAS["AddTags"].burst


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalAws(tmp_path_factory.mktemp("aws"), timings=Timings(throttles=True)) as server:
        yield server.endpoint_url


def test_boto3_gets_a_throttling_exception(url: str) -> None:
    session = boto3.Session("local", "local", region_name=aws.REGION)
    client = session.client("emr", endpoint_url=url, config=Config(retries={"total_max_attempts": 1}))
    for _ in range(int(QUOTAS["ListSecurityConfigurations"].burst)):
        client.list_security_configurations()
    with pytest.raises(ClientError, match="Rate exceeded") as raised:
        client.list_security_configurations()
    assert raised.value.response["Error"]["Code"] == "ThrottlingException"
