"""The names of a run: its folder, its dataset's folder, its cluster."""

import hashlib
import re
from datetime import UTC, datetime

from orchard.cluster.tags import MAX_CHARACTERS, NAME_PREFIX
from orchard.storage import split_uri

MAX_NAME_CHARACTERS = 512


def run_name(run_after: datetime, run_id: str, deployment: str) -> str:
    """Return the name of a run's folder, which no run of another deployment has, although the run_id may be the same.

    A run_id itself contains characters that Hadoop paths refuse.

    >>> run_name(datetime(2026, 11, 22, 2, tzinfo=UTC), "manual__2026-11-22T02:00:00+00:00", "prod")
    '20261122T020000-66502c'
    """
    return f"{run_after.astimezone(UTC):%Y%m%dT%H%M%S}-{run_id_hash(run_id, deployment)}"


def run_id_of(run_uri: str) -> str:
    """Return the value of the column run_id for a run: the name of its folder.

    >>> run_id_of("s3://fruits/runs/images/20261122T020000-66502c")
    '20261122T020000-66502c'
    """
    return run_uri.rsplit("/", 1)[-1]


def run_id_hash(run_id: str, deployment: str) -> str:
    """Return the hash that stands for a run of a deployment in names: six hexadecimal digits."""
    return hashlib.sha256(f"{deployment} {run_id}".encode()).hexdigest()[:6]


def dataset_name(uri: str) -> str:
    """Return the name of a dataset's folder: at most 512 characters, because S3 limits the keys below it.

    >>> dataset_name("s3://bucket/images/2026 autumn/")
    'images-2026-autumn'
    """
    bucket, prefix = split_uri(uri)
    return re.sub(r"[^0-9A-Za-z._]+", "-", prefix)[:MAX_NAME_CHARACTERS].strip("-.") or bucket


def cluster_name(bucket: str, deployment: str, run: str, dataset: str) -> str:
    """Return the name of a run's cluster, which no other run has.

    >>> cluster_name("fruits", "prod", "20261122T020000-e20065", "images")
    'orchard-fruits-prod-20261122T020000-e20065-images'
    """
    return f"{NAME_PREFIX}{bucket}-{deployment}-{run}-{dataset}"[:MAX_CHARACTERS]


def hash_in_cluster_name(name: str, bucket: str, deployment: str) -> str | None:
    """Return the hash of the run_id in a cluster's name, or None if the cluster is not of the deployment.

    The pattern includes the run's time, because the name of one deployment may begin with the name of another.

    >>> hash_in_cluster_name("orchard-fruits-prod-20261122T020000-e20065-images", "fruits", "prod")
    'e20065'
    >>> hash_in_cluster_name("orchard-fruits-prod-2-20261122T020000-e20065-images", "fruits", "prod")
    """
    own = re.escape(f"{NAME_PREFIX}{bucket}-{deployment}-")
    found = re.match(rf"{own}\d{{8}}T\d{{6}}-([0-9a-f]{{6}})-", name)
    return found and found[1]
