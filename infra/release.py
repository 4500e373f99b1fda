"""Upload a release: what a cluster needs, in one folder on S3 that is named by its content and never changes.

    python -m infra.release --bucket BUCKET

Prints the version, for ORCHARD_RELEASE. The wheels and the model are made by `make release-parts` before.
"""

import argparse
import hashlib
import io
import json
import logging
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
MANIFEST = "manifest.json"
# Zip files hold times; a fixed one makes equal code give equal bytes, and so an equal version.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class PartMissing(FileNotFoundError):
    """A part of the release has not been built."""

    def __init__(self, what: str, folder: Path) -> None:
        super().__init__(f"no {what} in {folder}: build it with `make release-parts`")


def zip_package(package: Path) -> bytes:
    """A Python package as the bytes of a zip file for `spark-submit --py-files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*.py")):
            name = file.relative_to(package.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), file.read_bytes())
    return buffer.getvalue()


def collect(build_dir: Path, root: Path = ROOT) -> dict[str, bytes]:
    """The files of the release by their path in its folder.

    Raises:
        PartMissing: there are no wheels, or not exactly one model.
    """
    wheels = sorted((build_dir / "wheels").glob("*.whl"))
    if not wheels:
        raise PartMissing("wheel", build_dir / "wheels")
    models = sorted((build_dir / "model").glob("*.tflite"))
    if len(models) != 1:
        raise PartMissing(f"single model ({len(models)} are there)", build_dir / "model")
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
    """The manifest of a release; its version is a hash of every file's path and content."""
    files = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for path, content in sorted(contents.items())
    }
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    (model,) = (path for path in files if path.startswith("model/"))
    return {"version": version, "model": model, "files": files}


def upload(s3: "S3Client", bucket: str, contents: Mapping[str, bytes]) -> str:
    """Upload a release, its manifest last, and return its version; one that is there already is left as it is."""
    described = manifest(contents)
    version: str = described["version"]
    prefix = f"releases/{version}"
    try:
        s3.head_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
    else:
        log.info("release %s is in s3://%s already", version, bucket)
        return version
    for path, content in contents.items():
        # S3 keeps the checksum, so that preflight compares it with the manifest without reading the file.
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=content, ChecksumAlgorithm="SHA256")
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}", Body=json.dumps(described, indent=2).encode())
    size = sum(len(content) for content in contents.values())
    log.info("release %s: %d files, %.1f MB in s3://%s/%s", version, len(contents), size / 1e6, bucket, prefix)
    return version


def main(argv: list[str] | None = None) -> None:
    """Upload and print the version."""
    parser = argparse.ArgumentParser(description="Upload a release to S3.")
    parser.add_argument("--bucket", required=True, help="the bucket of ORCHARD_BUCKET")
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build", help="with wheels/ and model/")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    version = upload(boto3.client("s3"), arguments.bucket, collect(arguments.build_dir))
    sys.stdout.write(f"{version}\n")


if __name__ == "__main__":
    main()
