"""boto3 clients for EMR, from an operator's hook."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.emr import EmrHook
from airflow.sdk.exceptions import AirflowFailException

from orchard.cluster.emr_clusters import create_cluster
from orchard.errors import is_final

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# If a response is lost, a retry by botocore would create a second cluster or step. A retry of the task first looks for
# the existing one.
SEND_ONCE = {"retries": {"total_max_attempts": 1}}


def emr_client(operator: Any) -> "EMRClient":
    """Return the EMR client of an operator or sensor."""
    client: EMRClient = operator.hook.conn
    return client


def emr_client_without_retries(operator: Any) -> "EMRClient":
    """Return an EMR client that sends each request once, for operators and sensors that create something."""
    client: EMRClient = EmrHook(operator.aws_conn_id, region_name=operator.region_name, config=SEND_ONCE).conn
    return client


@contextmanager
def failing_at_once(prefix: str) -> Iterator[None]:
    """Fail a task without retries when AWS would refuse its request again. Raise every other error as it is."""
    try:
        yield
    except Exception as error:
        if is_final(error):
            raise AirflowFailException(f"{prefix}{error}") from error
        raise


def create_run_cluster(operator: Any, request: Mapping[str, Any]) -> str:
    """Create a run's cluster, or adopt the active one of the same name. Return its id.

    Raises:
        AirflowFailException: EMR refuses the request, and would refuse it again.
    """
    with failing_at_once("EMR rejected the cluster: "):
        return create_cluster(emr_client_without_retries(operator), request)
