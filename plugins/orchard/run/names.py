"""The names of a run: its folder, its dataset's folder, its cluster."""

import hashlib
import re
from datetime import UTC, datetime

from orchard.cluster.tags import MAX_CHARACTERS, NAME_PREFIX
from orchard.storage import split_uri

MAX_NAME_CHARACTERS = 512


def run_name(run_after: datetime, run_id: str) -> str:
    """Return the name of a run's folder. A run_id contains characters that are invalid in Hadoop paths.

    >>> run_name(datetime(2026, 11, 22, 2, tzinfo=UTC), "manual__2026-11-22T02:00:00+00:00")
    '20261122T020000-e20065'
    """
    return f"{run_after.astimezone(UTC):%Y%m%dT%H%M%S}-{run_id_hash(run_id)}"


def run_id_hash(run_id: str) -> str:
    """Return the hash that represents a run_id in names: six hexadecimal digits."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:6]


def dataset_name(uri: str) -> str:
    """Return the name of a dataset's folder: at most 512 characters, because S3 limits the keys below it.

    >>> dataset_name("s3://bucket/images/2026 autumn/")
    'images-2026-autumn'
    """
    bucket, prefix = split_uri(uri)
    return re.sub(r"[^0-9A-Za-z._]+", "-", prefix)[:MAX_NAME_CHARACTERS].strip("-.") or bucket


def cluster_name(bucket: str, run: str, dataset: str) -> str:
    """Return the name of a run's cluster. It is unique to the run, because only one deployment uses the bucket.

    >>> cluster_name("fruits", "20261122T020000-e20065", "images")
    'orchard-fruits-20261122T020000-e20065-images'
    """
    return f"{NAME_PREFIX}{bucket}-{run}-{dataset}"[:MAX_CHARACTERS]


def hash_in_cluster_name(name: str, bucket: str) -> str | None:
    """Return the hash of the run_id in a cluster's name, or None if the name is not from the bucket's deployment.

    The pattern includes the run's time, because the name of one bucket may begin with the name of another.

    >>> hash_in_cluster_name("orchard-fruits-20261122T020000-e20065-images", "fruits")
    'e20065'
    >>> hash_in_cluster_name("orchard-fruits-test-20261122T020000-e20065-images", "fruits")
    """
    found = re.match(rf"{NAME_PREFIX}{re.escape(bucket)}-\d{{8}}T\d{{6}}-([0-9a-f]{{6}})-", name)
    return found and found[1]
