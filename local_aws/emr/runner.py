"""Start bootstrap actions and steps on a node, and upload their logs to S3."""

import gzip
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from local_aws.emr.hardware import executor_types
from local_aws.emr.master import Master
from local_aws.emr.model import Cluster
from local_aws.emr.node import Node, make_node
from local_aws.emr.process import Process

log = logging.getLogger(__name__)


def bucket_exists(bucket: str) -> bool:
    """Return whether S3 has a bucket with this name, in any region."""
    return any(bucket in backend.buckets for backend in list(s3_backends[DEFAULT_ACCOUNT_ID].values()))


def log_file(log_uri: str | None, key: str) -> str | None:
    """Return the URI of the uploaded stderr.gz of a command, which may not be there yet.

    Return None without LogUri, or if its bucket does not exist.
    """
    if log_uri is None:
        return None
    bucket, prefix = _log_location(log_uri, key)
    return f"s3://{bucket}/{prefix}/stderr.gz" if bucket_exists(bucket) else None


def step_logs(node: Node, step_id: str) -> Path:
    """Return the folder of a step's logs."""
    return node.root / f"var/log/hadoop/steps/{step_id}"


class Runner:
    """Creates nodes below a folder, and starts commands on them; scripts and logs are in the S3 of this server."""

    def __init__(self, data: Path, endpoint_url: str, master: Master) -> None:
        self._data = data
        self._endpoint_url = endpoint_url
        self._master = master
        self._client_lock = threading.Lock()

    def node_folder(self, cluster_id: str) -> Path:
        """Return the root folder of a cluster's node."""
        return self._data / "clusters" / cluster_id

    def make_node(self, cluster: Cluster) -> Node:
        """Create the node of a cluster."""
        root = self.node_folder(cluster.id)
        configurations = cluster.request.get("Configurations", [])
        settings = self._master.settings()
        return make_node(
            root, self._endpoint_url, cluster.region, configurations, settings, executor_types(cluster.pools)
        )

    def start_bootstrap_action(self, node: Node, action: Mapping[str, Any], number: int) -> Process:
        """Download a bootstrap action from S3 and start it.

        Raises:
            ClientError, BotoCoreError: the script cannot be downloaded.
            OSError: the script cannot be started.
        """
        script = action["ScriptBootstrapAction"]
        target = node.root / "tmp" / f"bootstrap-action-{number}"
        target.write_bytes(self._fetch(script["Path"], node.region))
        target.chmod(0o755)
        arguments = [node.localise(argument) for argument in script.get("Args", [])]
        return node.start([str(target), *arguments], node.root / f"var/log/bootstrap-actions/{number}")

    def start_step(self, node: Node, step_id: str, jar: Mapping[str, Any]) -> Process:
        """Start the command of a step.

        Raises:
            ValueError: the jar is not command-runner.jar, or the node does not have the command.
            OSError: the command cannot be started.
        """
        arguments = [node.localise(argument) for argument in jar.get("Args", [])]
        if Path(jar["Jar"]).name != "command-runner.jar" or not arguments:
            raise ValueError(f"{jar['Jar']} {arguments} is not supported; use command-runner.jar with a command")
        program, *rest = arguments
        if (node.root / "usr/bin" / program).exists():
            program = str(node.root / "usr/bin" / program)
        try:
            return node.start([program, *rest], step_logs(node, step_id))
        except FileNotFoundError as error:
            programs = ", ".join(sorted(file.name for file in (node.root / "usr/bin").iterdir()))
            raise ValueError(
                f"{error}; the node has {programs}, and the programs in /usr/bin and /bin of this machine"
            ) from error

    def upload_logs(self, node: Node, logs: Path, log_uri: str | None, key: str) -> str | None:
        """Upload the logs of a command below LogUri, compressed as on EMR; return the URI of stderr.gz.

        Without LogUri, and after an error, which is logged, return None.
        """
        if log_uri is None:
            return None
        bucket, prefix = _log_location(log_uri, key)
        client = self._s3(node.region)
        try:
            for file in sorted(logs.glob("*")):
                client.put_object(Bucket=bucket, Key=f"{prefix}/{file.name}.gz", Body=gzip.compress(file.read_bytes()))
        except (BotoCoreError, ClientError) as error:
            log.warning("cannot upload logs to %s: %s", log_uri, error)
            return None
        return f"s3://{bucket}/{prefix}/stderr.gz"

    def _fetch(self, uri: str, region: str) -> bytes:
        parts = urlsplit(uri)
        content: bytes = self._s3(region).get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))["Body"].read()
        return content

    def _s3(self, region: str) -> Any:
        with self._client_lock:  # boto3's default session cannot create several clients at the same time
            return boto3.client(
                "s3",
                endpoint_url=self._endpoint_url,
                region_name=region,
                aws_access_key_id="local",
                aws_secret_access_key="local",  # noqa: S106
            )


def _log_location(log_uri: str, key: str) -> tuple[str, str]:
    """Return the bucket and the prefix of logs below LogUri."""
    target = urlsplit(log_uri.rstrip("/"))
    return target.netloc, f"{target.path.lstrip('/')}/{key}".lstrip("/")
