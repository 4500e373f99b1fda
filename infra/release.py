"""Upload a release to S3, and print its version for ORCHARD_RELEASE.

A release contains everything that a cluster needs, in one folder, with wheels for Intel and for Graviton processors.
Its version is a hash of its content, so the folder never changes. Build the wheels and the model first, with
`make release-parts`.
"""

import argparse
import hashlib
import io
import json
import logging
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
MANIFEST = "manifest.json"
# The architectures of the nodes, as they are named in the file names of wheels. A wheel without one of them fits all.
ARCHITECTURES = ("x86_64", "aarch64")
# Zip files contain timestamps. With a fixed timestamp, equal code gives equal bytes and so an equal version.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
EXAMPLE = """\
example:
  python -m infra.release --bucket my-bucket
"""


class PartMissing(FileNotFoundError):
    """A part of the release has not been built."""

    def __init__(self, part: str, folder: Path) -> None:
        super().__init__(f"no {part} in {folder}: build it with `make release-parts`")


def zip_package(package: Path) -> bytes:
    """Return a zip file of a Python package, for `spark-submit --py-files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*.py")):
            name = file.relative_to(package.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), file.read_bytes())
    return buffer.getvalue()


def missing_wheels(names: Iterable[str]) -> list[str]:
    """Return the missing wheels. Each package needs a wheel for each architecture, or one wheel for all.

    >>> missing_wheels(["boto3-1.0-py3-none-any.whl", "numpy-2.4-cp311-cp311-manylinux_2_28_x86_64.whl"])
    ['numpy for aarch64']
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        package, _, _ = name.partition("-")
        fitting = [architecture for architecture in ARCHITECTURES if name.endswith(f"_{architecture}.whl")]
        found[package] |= set(fitting or ARCHITECTURES)
    return [
        f"{package} for {architecture}"
        for package, architectures in sorted(found.items())
        for architecture in ARCHITECTURES
        if architecture not in architectures
    ]


def collect(build_dir: Path, root: Path = ROOT) -> dict[str, bytes]:
    """Return the contents of the release's files, by their path in the release's folder.

    Raises:
        PartMissing: there are no wheels, one of an architecture is missing, or there is not exactly one model.
    """
    wheels = sorted((build_dir / "wheels").glob("*.whl"))
    if not wheels:
        raise PartMissing("wheel", build_dir / "wheels")
    missing = missing_wheels(wheel.name for wheel in wheels)
    if missing:
        raise PartMissing(f"wheel of {', '.join(missing)}", build_dir / "wheels")
    models = sorted((build_dir / "model").glob("*.tflite"))
    if len(models) != 1:
        raise PartMissing(f"single model ({len(models)} found)", build_dir / "model")
    files = {
        **{f"bootstrap/{name}": (root / "bootstrap" / name) for name in ("install.sh", "requirements.txt")},
        **{f"wheels/{wheel.name}": wheel for wheel in wheels},
        f"model/{models[0].name}": models[0],
        **{f"spark/{step.name}": step for step in sorted((root / "spark").glob("*.py"))},
    }
    contents = {path: file.read_bytes() for path, file in files.items()}
    contents["spark/orchard_spark.zip"] = zip_package(root / "spark/orchard_spark")
    return contents


def manifest(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of a release. Its version is a hash of the path and the content of every file."""
    files = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for path, content in sorted(contents.items())
    }
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    (model,) = (path for path in files if path.startswith("model/"))
    return {"version": version, "model": model, "files": files}


def upload(s3: "S3Client", bucket: str, contents: Mapping[str, bytes]) -> str:
    """Upload a release, its manifest last, and return its version. A release that already exists is not changed."""
    content_manifest = manifest(contents)
    version: str = content_manifest["version"]
    prefix = f"releases/{version}"
    try:
        s3.head_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
    else:
        log.info("release %s already exists in s3://%s", version, bucket)
        return version
    for path, content in contents.items():
        # S3 stores the checksum, so that preflight can compare it with the manifest without reading the file.
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=content, ChecksumAlgorithm="SHA256")
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}", Body=json.dumps(content_manifest, indent=2).encode())
    size = sum(len(content) for content in contents.values())
    log.info("release %s: %d files, %.1f MB in s3://%s/%s", version, len(contents), size / 1e6, bucket, prefix)
    return version


def main(argv: list[str] | None = None) -> None:
    """Upload the release and print its version."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.release",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bucket", required=True, help="bucket of the deployment, as in ORCHARD_BUCKET")
    parser.add_argument(
        "--build-dir", type=Path, default=ROOT / "build", help="folder with wheels/ and model/ (default: build)"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    version = upload(boto3.client("s3"), arguments.bucket, collect(arguments.build_dir))
    sys.stdout.write(f"{version}\n")


if __name__ == "__main__":
    main()
