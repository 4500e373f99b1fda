"""List the releases in the bucket of a deployment, the runs that used them, and how to delete the unused ones.

A release is unused if no run below runs/ was planned with it, and the variable ORCHARD_RELEASE, if it is set, does not
name it. Nothing is deleted.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.release import MANIFEST, explain, version_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# The file that the task `plan` writes into the folder of a run.
PLAN = "plan.metrics.json"
READERS = 16
NEEDS = "s3:ListBucket, and s3:GetObject below releases/ and runs/"
EXAMPLE = """\
example:
  python -m infra.release_list --bucket my-bucket
"""


@dataclass(frozen=True)
class Stored:
    """A release on S3. `fault` says what is wrong with it, or is empty. `model` is empty if the manifest is missing."""

    version: str
    uploaded: datetime
    files: int
    bytes: int
    model: str
    fault: str


@dataclass(frozen=True)
class Planned:
    """A run that has a plan. `release` is empty if an earlier version of Orchard planned it."""

    uri: str
    at: datetime
    release: str
    model: str


@dataclass(frozen=True)
class Use:
    """A release and the runs that used it, or may have used it, latest first."""

    release: Stored
    is_configured: bool
    runs: Sequence[Planned]
    possible_runs: Sequence[Planned]

    @property
    def is_unused(self) -> bool:
        """Whether nothing is known to have used the release."""
        return not (self.is_configured or self.runs or self.possible_runs)


def _objects(s3: "S3Client", bucket: str, prefix: str) -> Iterable[Any]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return (item for page in pages for item in page.get("Contents", []))


def _read(s3: "S3Client", bucket: str, key: str) -> Any:
    """Return the JSON content of an object, or None if it is not JSON."""
    try:
        return json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except ValueError:
        return None


def fault_of(version: str, manifest: Any, sizes: Mapping[str, int]) -> str:
    """Return what is wrong with a release, from its manifest and the sizes of its objects by their path in its folder.

    >>> fault_of("1", {"files": {"a": {"size": 1}, "b": {"size": 2}}}, {"a": 1, "manifest.json": 9})
    '1 of its 2 files missing or of another size'
    """
    try:
        expected = {path: file["size"] for path, file in manifest["files"].items()}
        content = version_of(manifest["files"])
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    if "version" in manifest and not version == manifest["version"] == content:
        return f"{MANIFEST} was changed, or is that of another release"
    wrong = sum(sizes.get(path) != size for path, size in expected.items())
    return f"{wrong} of its {len(expected)} files missing or of another size" if wrong else ""


def stored_releases(s3: "S3Client", bucket: str) -> list[Stored]:
    """Return the releases in a bucket, the latest upload first."""
    folders: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for item in _objects(s3, bucket, "releases/"):
        _, version, path = (*item["Key"].split("/", 2), "")[:3]
        if version and path:
            folders[version][path] = item
    found = []
    for version, items in folders.items():
        sizes = {path: item["Size"] for path, item in items.items()}
        model, fault = "", f"no {MANIFEST}: the upload was interrupted, or is not finished"
        if MANIFEST in items:
            manifest = _read(s3, bucket, f"releases/{version}/{MANIFEST}")
            fault = fault_of(version, manifest, sizes)
            model = PurePosixPath(str(manifest.get("model", ""))).stem if isinstance(manifest, dict) else ""
        uploaded = items[MANIFEST] if MANIFEST in items else max(items.values(), key=lambda item: item["LastModified"])
        files = len(items) - (MANIFEST in items)
        found.append(Stored(version, uploaded["LastModified"], files, sum(sizes.values()), model, fault))
    return sorted(found, key=lambda release: release.uploaded, reverse=True)


def planned_runs(s3: "S3Client", bucket: str) -> list[Planned]:
    """Return the runs below runs/ that have a plan, the latest first."""

    def read(item: Any) -> Planned:
        plan = _read(s3, bucket, item["Key"])
        plan = plan if isinstance(plan, dict) else {}
        uri = f"s3://{bucket}/{item['Key'].removesuffix(f'/{PLAN}')}"
        # A run that was cleared was planned again, so that only its last release is known.
        return Planned(uri, item["LastModified"], plan.get("release") or "", plan.get("model") or "")

    plans = [item for item in _objects(s3, bucket, "runs/") if item["Key"].endswith(f"/{PLAN}")]
    with ThreadPoolExecutor(READERS) as pool:
        return sorted(pool.map(read, plans), key=lambda run: run.at, reverse=True)


def uses(releases: Sequence[Stored], runs: Sequence[Planned], configured: str) -> list[Use]:
    """Return what has used each release.

    The plan of an earlier version of Orchard names only the model. So its run may have used each release of that model
    that was uploaded before.
    """
    return [
        Use(
            release,
            release.version == configured,
            [run for run in runs if run.release == release.version],
            [
                run
                for run in runs
                if not run.release and run.at >= release.uploaded and run.model in ("", release.model)
            ],
        )
        for release in releases
    ]


def _used_by(use: Use) -> str:
    parts = ["ORCHARD_RELEASE"] if use.is_configured else []
    for runs, word in ((use.runs, ""), (use.possible_runs, "possibly ")):
        if runs:
            count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
            parts.append(f"{word}{count}, the last at {_minute(runs[0].at)}: {runs[0].uri}")
    return "; ".join(parts) or "nothing"


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def report(bucket: str, found: Sequence[Use], configured: str) -> str:
    """Return the list of the releases, and the commands that delete the unused ones."""
    if not found:
        return f"s3://{bucket} has no releases. Upload one with `make release BUCKET={bucket}`\n"
    width = max(len("release"), *(len(use.release.version) for use in found))
    lines = [f"{'release':{width}}  {'uploaded (UTC)':16}  {'files':>5}  {'MB':>6}  used by"]
    for use in found:
        release = use.release
        lines.append(
            f"{release.version:{width}}  {_minute(release.uploaded)}  {release.files:5}  {release.bytes / 1e6:6.1f}  "
            f"{_used_by(use)}"
        )
        if release.fault:
            lines.append(f"{'':{width}}  not usable: {release.fault}")
    if configured and not any(use.is_configured for use in found):
        lines += ["", f"ORCHARD_RELEASE is {configured}, which is not in s3://{bucket}."]
    unused = [use.release for use in found if use.is_unused]
    lines.append("")
    if not unused:
        lines.append("No release is unused.")
        return "\n".join(lines) + "\n"
    total = sum(release.bytes for release in unused) / 1e6
    lines += [
        f"Unused: {len(unused)} of {len(found)} releases, {total:.1f} MB. Before you delete one, check that no Airflow",
        "has it in ORCHARD_RELEASE, because runs that find nothing to do leave no plan. To delete it:",
        "",
    ]
    for release in unused:
        uri = shlex.quote(f"s3://{bucket}/releases/{release.version}/")
        lines.append(f"    aws s3 rm --recursive {uri}")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the list, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.release_list",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bucket", required=True, help="bucket of the deployment, as in ORCHARD_BUCKET")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bucket, configured = arguments.bucket, os.environ.get("ORCHARD_RELEASE", "")
    try:
        s3 = boto3.client("s3")
        found = uses(stored_releases(s3, bucket), planned_runs(s3, bucket), configured)
    except (BotoCoreError, ClientError) as error:
        log.error("failed: %s", explain(error, bucket, NEEDS))
        return 1
    sys.stdout.write(report(bucket, found, configured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
