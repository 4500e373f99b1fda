"""The settings of a deployment, read from the environment once."""

import difflib
import hashlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

from orchard.dataset.uri import BUCKET_PATTERN, BadDatasetUri, check_dataset_uri

log = logging.getLogger(__name__)

PREFIX = "ORCHARD_"
# bootstrap/install.sh needs python3.11 on the node.
FIRST_RELEASE_WITH_PYTHON_311 = (7, 1)
# A threshold of a figure of quality, None if it is off.
Threshold: TypeAlias = float | None
OFF = "off"
BOOLEANS = {"true": True, "false": False}
# The settings for the cluster's own security groups: of the primary node, of the others, of EMR in private subnets.
SECURITY_GROUPS = ("primary_security_group", "core_security_group", "service_security_group")
# The variables that are not settings and of which this process has warned.
_warned: set[str] = set()


class BadSettings(ValueError):
    """The settings are missing, unknown or invalid. The message lists every fault."""


def default_deployment(bucket: str, airflow: str) -> str:
    """Return the name of a deployment that has no ORCHARD_DEPLOYMENT: a hash of its bucket and of its Airflow.

    >>> default_deployment("fruits", "https://airflow.example.com")
    '241de705'
    """
    return hashlib.sha256(f"{bucket}\n{airflow}".encode()).hexdigest()[:8]


def _is_share(threshold: str) -> bool:
    return not threshold.endswith(("_drift", "_usd"))


def _range(threshold: str) -> str:
    return "a number from 0 to 1" if _is_share(threshold) else "0 or a positive number"


def _is_in_range(threshold: str, value: Threshold) -> bool:
    return value is None or (math.isfinite(value) and value >= 0 and (value <= 1 or not _is_share(threshold)))


def _is_web_url(url: str) -> bool:
    """Return whether a text is a URL that a POST request can be sent to."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A deployment. Each field is the environment variable ORCHARD_<FIELD>. Lists are separated by commas.

    The fields `warn_*` and `stop_*` are the thresholds of `orchard.run.quality`, and `warn_cost_usd` that of
    `orchard.run.notices`. `alert_webhook_url` is a secret, which no message may contain.
    """

    bucket: str
    release: str
    deployment: str = ""
    region: str = "eu-west-1"
    release_label: str = "emr-7.14.0"
    service_role: str = "EMR_DefaultRole_V2"
    instance_profile: str = "EMR_EC2_DefaultRole"
    subnet_ids: tuple[str, ...] = ()
    primary_security_group: str = ""
    core_security_group: str = ""
    service_security_group: str = ""
    security_configuration: str = ""
    dataset_prefix: str = "images/"
    datasets: tuple[str, ...] = ()
    log_prefix: str = "logs/"
    catalog_database: str = "orchard"
    owner: str = "fruits"
    poll_seconds: int = 30
    ready_timeout_minutes: int = 30
    ingest_timeout_minutes: int = 120
    features_timeout_minutes: int = 360
    pca_timeout_minutes: int = 60
    idle_timeout_minutes: int = 15
    deadline_hours: int = 8
    alert_topic_arn: str = ""
    alert_email: tuple[str, ...] = ()
    alert_webhook_url: str = field(default="", repr=False)
    max_running_clusters: int = 4
    max_cluster_hours: int = 12
    keep_scratch_days: int = 0
    warn_label_accuracy: Threshold = 0.5
    stop_label_accuracy: Threshold = None
    warn_drift: Threshold = 0.25
    stop_drift: Threshold = None
    warn_explained_variance: Threshold = 0.5
    stop_explained_variance: Threshold = None
    warn_label_loss: Threshold = 0.5
    stop_label_loss: Threshold = None
    warn_reject_ratio: Threshold = 0.01
    warn_cost_usd: Threshold = None
    kept_runs: int = 30
    maintenance_dry_run: bool = True

    def __post_init__(self) -> None:
        """Check the values. Without a deployment, set the one that `default_deployment` returns for the bucket.

        Raises:
            BadSettings: at least one value is invalid.
        """
        if not self.deployment:
            object.__setattr__(self, "deployment", default_deployment(self.bucket, ""))
        faults = []
        if not re.fullmatch(r"[0-9a-z]([0-9a-z-]{0,30}[0-9a-z])?", self.deployment):
            faults.append(f"{PREFIX}DEPLOYMENT is {self.deployment!r}: use at most 32 of a-z, 0-9 and -")
        if not re.fullmatch(BUCKET_PATTERN, self.bucket):
            faults.append(f"{PREFIX}BUCKET is {self.bucket!r}: use the name of an S3 bucket, without s3://")
        if not re.fullmatch(r"[0-9a-zA-Z._-]+", self.release):
            faults.append(f"{PREFIX}RELEASE is {self.release!r}: use the version that `make release` printed")
        if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", self.region):
            faults.append(f"{PREFIX}REGION is {self.region!r}: use a region such as eu-west-1")
        label = re.fullmatch(r"emr-(\d+)\.(\d+)\.\d+", self.release_label)
        if label is None or (int(label[1]), int(label[2])) < FIRST_RELEASE_WITH_PYTHON_311:
            faults.append(
                f"{PREFIX}RELEASE_LABEL is {self.release_label!r}: use a label such as emr-7.14.0, emr-7.1.0 or later"
            )
        faults += self._security_group_faults()
        for name in ("dataset_prefix", "log_prefix"):
            value = getattr(self, name)
            if not value.endswith("/") or value.startswith("/"):
                faults.append(f"{PREFIX}{name.upper()} is {value!r}: use a prefix such as images/")
                continue
            try:
                check_dataset_uri(f"s3://bucket/{value}")
            except BadDatasetUri as error:
                remedy = str(error).replace("s3://bucket/", "")
                faults.append(f"{PREFIX}{name.upper()} is {value!r}: {remedy}")
        for uri in self.dataset_uris[1:]:
            try:
                check_dataset_uri(uri)
            except BadDatasetUri as error:
                faults.append(f"{PREFIX}DATASETS contains {uri!r}: {error}")
        faults += [
            f"{PREFIX}ALERT_EMAIL contains {address!r}: use addresses such as team@example.com, separated by commas"
            for address in self.alert_email
            if not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", address)
        ]
        if self.alert_webhook_url and not _is_web_url(self.alert_webhook_url):
            faults.append(f"{PREFIX}ALERT_WEBHOOK_URL is not a URL that starts with https:// or http://")
        if not re.fullmatch(r"[a-z0-9_]{1,255}", self.catalog_database):
            faults.append(f"{PREFIX}CATALOG_DATABASE is {self.catalog_database!r}: use only a-z, 0-9 and _")
        faults += [
            f"{PREFIX}{field.name.upper()} is {getattr(self, field.name)}: use a positive number"
            for field in fields(self)
            if field.type is int and field.name != "keep_scratch_days" and getattr(self, field.name) <= 0
        ]
        if self.keep_scratch_days < 0:
            faults.append(f"{PREFIX}KEEP_SCRATCH_DAYS is {self.keep_scratch_days}: use 0 or a positive number")
        faults += [
            f"{PREFIX}{field.name.upper()} is {getattr(self, field.name)}: use {_range(field.name)}, or {OFF}"
            for field in fields(self)
            if field.type == Threshold and not _is_in_range(field.name, getattr(self, field.name))
        ]
        shortest_minutes = min(getattr(self, field.name) for field in fields(self) if field.name.endswith("_minutes"))
        if self.poll_seconds > 60 * shortest_minutes > 0:
            faults.append(f"{PREFIX}POLL_SECONDS is {self.poll_seconds}: use a value below the shortest timeout")
        longest_minutes = 2 * self.ready_timeout_minutes + sum(
            (self.ingest_timeout_minutes, self.features_timeout_minutes, self.pca_timeout_minutes)
        )
        if longest_minutes > 60 * self.max_cluster_hours > 0:
            faults.append(
                f"{PREFIX}MAX_CLUSTER_HOURS is {self.max_cluster_hours}, but the timeouts allow a cluster to run "
                f"for {longest_minutes / 60:g} hours: use a larger value, or shorter timeouts"
            )
        if self.idle_timeout_minutes > 7 * 24 * 60:
            faults.append(f"{PREFIX}IDLE_TIMEOUT_MINUTES is {self.idle_timeout_minutes}: EMR allows at most 7 days")
        if faults:
            raise BadSettings("; ".join(faults))

    @classmethod
    def from_env(cls, env: Mapping[str, str], airflow: str = "") -> Self:
        """Read the settings from an environment. `airflow` is what distinguishes this Airflow from others.

        A variable that is not a setting is only a warning: Kubernetes adds variables such as ORCHARD_WEBSERVER_PORT to
        every pod beside a service whose name starts with orchard.

        Raises:
            BadSettings: a variable is missing, or its value is invalid.
        """
        known = {PREFIX + field.name.upper(): field for field in fields(cls)}
        given = {name: value for name, value in env.items() if name.startswith(PREFIX)}
        for name in sorted(given.keys() - known - _warned):
            _warned.add(name)
            names = [field.name.upper() for field in known.values()]
            nearest = difflib.get_close_matches(name.removeprefix(PREFIX).upper(), names, 1)
            hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "no setting has a similar name"
            log.warning("%s is ignored, because it is not a setting: %s", name, hint)
        faults = [f"{PREFIX}{name} is not set" for name in ("BUCKET", "RELEASE") if PREFIX + name not in given]
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                continue
            field = known[name]
            if field.type is int:
                try:
                    values[field.name] = int(value)
                except ValueError:
                    faults.append(f"{name} is {value!r}: use a whole number")
            elif field.type == Threshold:
                try:
                    values[field.name] = None if value.lower() == OFF else float(value)
                except ValueError:
                    faults.append(f"{name} is {value!r}: use {_range(field.name)}, or {OFF}")
            elif field.type is bool:
                if value.lower() in BOOLEANS:
                    values[field.name] = BOOLEANS[value.lower()]
                else:
                    faults.append(f"{name} is {value!r}: use true or false")
            elif field.type is str:
                values[field.name] = value
            else:
                values[field.name] = tuple(part.strip() for part in value.split(",") if part.strip())
        if faults:
            raise BadSettings("; ".join(faults))
        return cls(**{"deployment": default_deployment(values["bucket"], airflow), **values})

    def _security_group_faults(self) -> list[str]:
        """Return what is wrong with the cluster's own security groups.

        EMR requires both groups of the nodes if one is given, and uses the third only with them:
        https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-sg-specify.html
        """
        groups = {name: getattr(self, name) for name in SECURITY_GROUPS}
        faults = [
            f"{PREFIX}{name.upper()} is {group!r}: use the id of a security group, such as sg-0123456789abcdef0"
            for name, group in groups.items()
            if group and not re.fullmatch(r"sg-[0-9a-f]{8}([0-9a-f]{9})?", group)
        ]
        missing = [f"{PREFIX}{name.upper()}" for name in SECURITY_GROUPS[:2] if not groups[name]]
        if missing and any(groups.values()):
            given = " and ".join(f"{PREFIX}{name.upper()} is {group!r}" for name, group in groups.items() if group)
            faults.append(
                f"{given}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: set the groups "
                "of the primary and of the core nodes, or no group"
            )
        return faults

    @property
    def bucket_uri(self) -> str:
        """The bucket for releases, runs, tables and logs."""
        return f"s3://{self.bucket}"

    @property
    def release_uri(self) -> str:
        """The folder of the release: code, wheels, bootstrap action, model."""
        return f"{self.bucket_uri}/releases/{self.release}"

    @property
    def log_uri(self) -> str:
        """The folder of EMR's logs."""
        return f"{self.bucket_uri}/{self.log_prefix}"

    @property
    def warehouse_uri(self) -> str:
        """The folder of the Iceberg tables."""
        return f"{self.bucket_uri}/warehouse"

    @property
    def dataset_uri(self) -> str:
        """The folder of images that the nightly run reads."""
        return f"{self.bucket_uri}/{self.dataset_prefix}"

    @property
    def dataset_uris(self) -> tuple[str, ...]:
        """The folders of images that the trigger form suggests, that of the nightly run first."""
        others = (name if name.startswith("s3://") else f"{self.bucket_uri}/{name}" for name in self.datasets)
        return tuple(dict.fromkeys((self.dataset_uri, *others)))
