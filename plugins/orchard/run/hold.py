"""The hold of a run's cluster: for `hold_minutes` after `publish`, a person can look around on it with JupyterHub.

The end of a hold follows from the time at which the run was published. It does not change if the task that waits for
it is retried or cleared, or if Airflow is restarted.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchard.cluster.tags import DEPLOYMENT_TAG, HELD_TAG, HOLD_TAG
from orchard.errors import PermanentError
from orchard.run.params import MAX_HOLD_MINUTES
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# The task that holds the cluster of a run, and the key of its XCom with the hold.
HOLD_TASK, HOLD = "hold_cluster", "hold"
# EMR 8 has no JupyterHub.
FIRST_WITHOUT_JUPYTERHUB = 8
# JupyterHub's port on the primary node, and the user that EMR creates, with a documented password:
# https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-jupyterhub-user-access.html
JUPYTERHUB_PORT = 9443
JUPYTERHUB_URL = f"https://127.0.0.1:{JUPYTERHUB_PORT}"
JUPYTERHUB_USER, JUPYTERHUB_PASSWORD = "jovyan", "jupyter"


class NoJupyterHub(PermanentError):
    """The cluster of a run is to be held, but its EMR release has no JupyterHub."""

    def __init__(self, release_label: str, hold_minutes: int) -> None:
        super().__init__(
            f"hold_minutes is {hold_minutes}, but ORCHARD_RELEASE_LABEL is {release_label}, and EMR "
            f"{FIRST_WITHOUT_JUPYTERHUB} has no JupyterHub: set hold_minutes to 0, or the label to a release of EMR "
            f"{FIRST_WITHOUT_JUPYTERHUB - 1}"
        )


class NoPrimaryNode(RuntimeError):
    """EMR lists no running primary node of a cluster. A retry may succeed."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(f"EMR lists no running primary node of cluster {cluster_id}: see the cluster in EMR's console")


@dataclass(frozen=True)
class Hold:
    """A cluster that is kept until a time, and the EC2 instance that is its primary node."""

    cluster_id: str
    instance_id: str
    region: str
    until: datetime

    @property
    def command(self) -> str:
        """The command that forwards a port of the user's machine to JupyterHub. It needs no open port of the node."""
        port = str(JUPYTERHUB_PORT)
        parameters = json.dumps({"portNumber": [port], "localPortNumber": [port]}, separators=(",", ":"))
        return (
            f"aws ssm start-session --region {self.region} --target {self.instance_id} "
            f"--document-name AWS-StartPortForwardingSession --parameters '{parameters}'"
        )

    def lines(self) -> list[str]:
        """Return what a person must know, as lines for a log."""
        return [
            f"cluster {self.cluster_id} is kept until {time_text(self.until)}; the run has released its turn",
            f"to reach JupyterHub, run: {self.command}",
            f"then open {JUPYTERHUB_URL} (user {JUPYTERHUB_USER}, password {JUPYTERHUB_PASSWORD})",
            "to end the hold early, mark this task as success",
        ]

    def as_xcom(self) -> dict[str, str]:
        """Return the hold as an XCom, with what a person needs in order to open JupyterHub."""
        values = {**asdict(self), "until": self.until.isoformat()}
        return {**values, "command": self.command, "url": JUPYTERHUB_URL, "user": JUPYTERHUB_USER}

    @classmethod
    def from_xcom(cls, value: object) -> "Hold | None":
        """Return the hold of an XCom. Return None if it is not one: XComs are data that anybody may have written."""
        if not isinstance(value, Mapping):
            return None
        names: dict[str, Any] = {key: value.get(key) for key in ("cluster_id", "instance_id", "region")}
        try:
            until = datetime.fromisoformat(value["until"])
        except (KeyError, TypeError, ValueError):
            return None
        # The names are a part of the command that the page tells people to run.
        is_valid = all(isinstance(name, str) and re.fullmatch(r"[\w-]+", name, re.ASCII) for name in names.values())
        return cls(**names, until=until) if is_valid and until.tzinfo is not None else None


def check_hold(settings: Settings, hold_minutes: int) -> None:
    """Check that a cluster of the deployment can be held.

    Raises:
        NoJupyterHub: the EMR release has no JupyterHub.
    """
    release = int(settings.release_label.removeprefix("emr-").partition(".")[0])  # the settings check its form
    if hold_minutes and release >= FIRST_WITHOUT_JUPYTERHUB:
        raise NoJupyterHub(settings.release_label, hold_minutes)


def hold_of(tags: Mapping[str, str]) -> timedelta:
    """Return for how long the run of a cluster keeps it after `publish`, from its tags. An odd value counts as 0.

    >>> hold_of({"orchard:hold-minutes": "60"}), hold_of({}), hold_of({"orchard:hold-minutes": "-1"})
    (datetime.timedelta(seconds=3600), datetime.timedelta(0), datetime.timedelta(0))
    """
    text = tags.get(HOLD_TAG, "")
    minutes = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    return timedelta(minutes=min(minutes, MAX_HOLD_MINUTES))


def start_hold(emr: "EMRClient", settings: Settings, cluster_id: str, until: datetime) -> Hold:
    """Mark a cluster as held, so that no run waits for it any more, and return how to reach it.

    Raises:
        NoPrimaryNode: the cluster has no primary node.
    """
    listed = emr.list_instances(ClusterId=cluster_id, InstanceFleetType="MASTER", InstanceStates=["RUNNING"])
    ids = [instance["Ec2InstanceId"] for instance in listed["Instances"]]
    if not ids:
        raise NoPrimaryNode(cluster_id)
    # Airflow's role allows AddTags only in requests that also set the tag of the deployment.
    tags = {DEPLOYMENT_TAG: settings.deployment, HELD_TAG: until.isoformat()}
    emr.add_tags(ResourceId=cluster_id, Tags=[{"Key": key, "Value": value} for key, value in tags.items()])
    return Hold(cluster_id, ids[0], settings.region, until)


def time_text(time: datetime) -> str:
    """Return a time as a person reads it, with its time zone.

    >>> time_text(datetime(2026, 11, 22, 3, 10, 5, tzinfo=UTC))
    '2026-11-22 03:10 UTC'
    """
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
