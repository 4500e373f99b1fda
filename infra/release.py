"""Upload a release to S3, and print the settings ORCHARD_BUCKET and ORCHARD_RELEASE, as lines of an env file.

A release contains everything that a cluster needs, in one folder, with wheels for Intel and for Graviton processors.
Its version is a hash of its content, so the folder never changes, and two builds of one commit have the same version.
Build the wheels and the model first, with `make release-parts`.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
MANIFEST = "manifest.json"
# The architectures of the nodes, as they are named in the file names of wheels. A wheel without one of them fits all.
ARCHITECTURES = ("x86_64", "aarch64")
# Zip files contain timestamps, permissions and the author's system. With fixed ones, equal code gives equal bytes, and
# so an equal version. The files are not compressed, because each implementation of zlib gives other bytes.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
ZIP_SYSTEM_UNIX = 3
ZIP_PERMISSIONS = 0o600 << 16
# What a release is made from. The wheels and the model follow from these files.
SOURCES = ("bootstrap", "spark", "model", "uv.lock", "Makefile")
NEEDS = "s3:ListBucket, and s3:GetObject and s3:PutObject below releases/"
EXAMPLE = """\
example:
  python -m infra.release --bucket my-bucket
"""


class PartMissing(FileNotFoundError):
    """A part of the release has not been built."""

    def __init__(self, part: str, folder: Path) -> None:
        super().__init__(f"no {part} in {folder}: build it with `make release-parts`")


class WrongWheels(ValueError):
    """The wheels are not those of bootstrap/requirements.txt, so nodes could not install the release."""

    def __init__(self, faults: Iterable[str]) -> None:
        super().__init__(
            f"the wheels are not those of bootstrap/requirements.txt: {'; '.join(faults)}. Delete build/wheels, and "
            "build them with `make release-parts`"
        )


def zip_package(package: Path, files: Iterable[Path]) -> bytes:
    """Return a zip file of files of a Python package, for `spark-submit --py-files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(files):
            info = zipfile.ZipInfo(file.relative_to(package.parent).as_posix(), ZIP_TIME)
            info.create_system, info.external_attr = ZIP_SYSTEM_UNIX, ZIP_PERMISSIONS
            archive.writestr(info, file.read_bytes())
    return buffer.getvalue()


def _git(root: Path, *arguments: str) -> list[str]:
    """Return the lines that a git command prints, separated by NUL. Without git or a checkout there are none."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    if done.returncode != 0:
        if (root / ".git").exists():
            log.warning("git cannot read the checkout: %s", os.fsdecode(done.stderr).strip())
        return []
    return [os.fsdecode(line) for line in done.stdout.split(b"\0") if line]


def tracked(root: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files that git tracks, sorted. If git tracks nothing in the folder of the project, return all.

    Without this, a file that was left in one checkout of a commit would change the version.
    """
    found, known = sorted(files), {root / path for path in _git(root, "ls-files", "-z", "--", "spark")}
    others = [file for file in found if file not in known] if known else []
    if others:
        names = ", ".join(str(file.relative_to(root)) for file in others)
        log.warning("git does not track %s: not in the release. Run `git add`, or delete them", names)
    return [file for file in found if file not in others]


def changed_sources(root: Path = ROOT) -> list[str]:
    """Return the tracked files, of those that a release is made from, that differ from the commit."""
    return sorted(_git(root, "diff", "--name-only", "-z", "--relative", "HEAD", "--", *SOURCES))


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

    In a git checkout, they are the files that git tracks, with the changes that are not committed.

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
    package = root / "spark/orchard_spark"
    files = {
        **{f"bootstrap/{name}": (root / "bootstrap" / name) for name in ("install.sh", "requirements.txt")},
        **{f"wheels/{wheel.name}": wheel for wheel in wheels},
        f"model/{models[0].name}": models[0],
        **{f"spark/{step.name}": step for step in tracked(root, (root / "spark").glob("*.py"))},
    }
    contents = {path: file.read_bytes() for path, file in files.items()}
    contents["spark/orchard_spark.zip"] = zip_package(package, tracked(root, package.rglob("*.py")))
    return contents


def check_wheels(contents: Mapping[str, bytes]) -> None:
    """Check that each requirement has a wheel with one of its hashes, and that there are no other wheels.

    Raises:
        WrongWheels: a wheel is missing, damaged, or not required.
    """
    wheels = {
        hashlib.sha256(content).hexdigest(): path.removeprefix("wheels/")
        for path, content in contents.items()
        if path.startswith("wheels/")
    }
    # A requirement starts a line, and its hashes follow in lines that are indented.
    requirements = re.split(r"\n(?=\S)", contents["bootstrap/requirements.txt"].decode())
    hashes = {text.split()[0]: set(re.findall(r"--hash=sha256:(\w+)", text)) for text in requirements if "==" in text}
    faults = [f"no wheel of {name}" for name, allowed in hashes.items() if not allowed & wheels.keys()]
    pinned = set[str]().union(*hashes.values())
    faults += [f"{name} has none of the hashes" for sha256, name in sorted(wheels.items()) if sha256 not in pinned]
    if faults:
        raise WrongWheels(faults)


def version_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the version of a release: a hash of the path, the size and the SHA-256 of each file."""
    ordered = {path: dict(sorted(file.items())) for path, file in sorted(files.items())}
    return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()[:12]


def manifest(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of a release. Its version is a hash of the path and the content of every file."""
    files = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for path, content in sorted(contents.items())
    }
    (model,) = (path for path in files if path.startswith("model/"))
    return {"version": version_of(files), "model": model, "files": files}


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


def explain(error: BotoCoreError | ClientError, bucket: str, needs: str) -> str:
    """Return what an error of S3 means for the bucket of a deployment, and what to do.

    `needs` are the permissions without which the program does not work.
    """
    code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
    advice = {
        "NoSuchBucket": f"bucket {bucket!r} does not exist. Create it, or correct the name",
        "ParamValidationError": f"bucket {bucket!r} is not a name that S3 allows. Correct the name",
        "NoCredentialsError": "there are no AWS credentials. Set AWS_PROFILE, or log in",
        "EndpointConnectionError": "S3 cannot be reached. Check the network, AWS_REGION and AWS_ENDPOINT_URL",
        "ConnectTimeoutError": "S3 cannot be reached. Check the network, AWS_REGION and AWS_ENDPOINT_URL",
    }
    denied = f"AWS denies access to bucket {bucket!r}. Use credentials that allow {needs}"
    advice |= dict.fromkeys(("AccessDenied", "403", "AllAccessDisabled"), denied)
    return f"{advice.get(code, f'S3 has not answered as expected for bucket {bucket!r}')} ({error})"


def main(argv: list[str] | None = None) -> int:
    """Upload the release, print the settings for it, and return the exit code."""
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
    changed = changed_sources()
    if changed:
        log.warning("the release is not that of the commit, because files have changed: %s", ", ".join(changed))
    try:
        contents = collect(arguments.build_dir)
        check_wheels(contents)
        version = upload(boto3.client("s3"), arguments.bucket, contents)
    except (PartMissing, WrongWheels) as error:
        log.error("failed: %s", error)
        return 1
    except (BotoCoreError, ClientError) as error:
        log.error("failed: %s", explain(error, arguments.bucket, NEEDS))
        return 1
    # Only this goes to the standard output, so that it can be appended to an env file.
    sys.stdout.write(f"ORCHARD_BUCKET={arguments.bucket}\nORCHARD_RELEASE={version}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
