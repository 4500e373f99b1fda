"""Read a release: one folder on S3 with everything that a cluster needs, and a manifest of its files.

A release contains the code of the steps, their wheels, the bootstrap action and the model. This module may import the
packages `tables`, `cluster` and `dataset`, and the modules `errors`, `settings` and `storage`.
"""

import base64
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import ClientError

from orchard.cluster.instances import ARCHITECTURES, INSTANCE_TYPES
from orchard.errors import PermanentError
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# infra/release.py takes so many hexadecimal digits of the hash.
VERSION_LENGTH = 12
# What decides whether an image decodes: the steps' package, and Pillow. Its wheels for all architectures are of one
# version, so a run on another architecture does not read rejected images again.
DECODER_FILE, DECODER_WHEEL = "spark/orchard_spark.zip", "wheels/pillow-"


class NoRelease(PermanentError):
    """The release that the settings name is not on S3."""

    def __init__(self, settings: Settings, error: Exception) -> None:
        super().__init__(
            f"release {settings.release!r} is not in {settings.release_uri} ({error}). Upload it with "
            f"`make release BUCKET={settings.bucket}`, and set ORCHARD_RELEASE to the version that it prints"
        )


class NoWheels(PermanentError):
    """The release cannot be installed on the nodes: it has no wheels for their architecture."""

    def __init__(self, settings: Settings, instance_type: str, packages: Sequence[str]) -> None:
        architecture = INSTANCE_TYPES[instance_type].architecture
        super().__init__(
            f"release {settings.release!r} has no wheels for {architecture}, the architecture of {instance_type}: "
            f"{', '.join(packages)} {'is' if len(packages) == 1 else 'are'} missing. Upload a new release with "
            f"`make release BUCKET={settings.bucket}`, and set ORCHARD_RELEASE to the version that it prints, or "
            "choose an instance_type of another architecture"
        )


class WrongManifest(NoRelease):
    """The manifest in the release's folder does not describe the release of the settings."""

    def __init__(self, settings: Settings, fault: str) -> None:
        PermanentError.__init__(
            self,
            f"the {MANIFEST} in {settings.release_uri} {fault}. Delete it, upload the release again with "
            f"`make release BUCKET={settings.bucket}`, and set ORCHARD_RELEASE to the version that it prints",
        )


@dataclass(frozen=True)
class File:
    """A file of a release: its size in bytes, and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """A release: its folder, its model's path, and every file by its path in the folder."""

    uri: str
    model: str
    files: Mapping[str, File]

    @property
    def bytes(self) -> int:
        """The total size of all files, in bytes."""
        return sum(file.size for file in self.files.values())

    @property
    def model_uri(self) -> str:
        """The URI of the MobileNetV2 model."""
        return f"{self.uri}/{self.model}"

    @property
    def model_name(self) -> str:
        """The name of the model in the tables: its file name without the extension."""
        return PurePosixPath(self.model).stem

    @property
    def decoder(self) -> str:
        """A short hash of the code that decodes images. Another decoder may read images that this one rejects."""
        files = sorted(
            (path, file.sha256)
            for path, file in self.files.items()
            if path == DECODER_FILE or path.lower().startswith(DECODER_WHEEL)
        )
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]

    def lacks_wheels(self, architecture: str) -> list[str]:
        """Return the packages of which all wheels are for other architectures.

        A wheel's file name ends with its platform: https://packaging.python.org/specifications/binary-distribution-format/.
        """
        wheels = [PurePosixPath(path).name for path in self.files if path.startswith("wheels/")]
        others = [f"_{other}.whl" for other in ARCHITECTURES if other != architecture]
        packages = {name.partition("-")[0] for name in wheels}
        return sorted(packages - {name.partition("-")[0] for name in wheels if not name.endswith(tuple(others))})

    @classmethod
    def from_manifest(cls, uri: str, manifest: Mapping[str, Any]) -> Self:
        """Return the release that a manifest of infra/release.py describes."""
        files = {path: File(file["size"], file["sha256"]) for path, file in manifest["files"].items()}
        return cls(uri, manifest["model"], files)


def version_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the version of a release with these files, as infra/release.py calculates it: a hash of all entries."""
    ordered = {path: dict(sorted(file.items())) for path, file in sorted(files.items())}
    return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()[:VERSION_LENGTH]


def _fault_of_manifest(manifest: Mapping[str, Any], expected: str) -> str:
    """Return what is wrong with a manifest in the folder of a version, or an empty string.

    infra/release.py writes the version into the manifest, and names the folder after it. Another manifest, in a folder
    with another kind of name, has no version that its content could be compared with.
    """
    version = manifest.get("version", expected)
    if version != expected:
        return f"describes release {version!r}, not {expected!r}"
    if "version" not in manifest and not re.fullmatch(rf"[0-9a-f]{{{VERSION_LENGTH}}}", expected):
        return ""
    content = version_of(manifest["files"])
    if content != expected:
        return f"was changed: the version of the files that it lists is {content!r}, not {expected!r}"
    # The hash does not cover the key `model`.
    models = ", ".join(path for path in manifest["files"] if path.startswith("model/"))
    if manifest["model"] != models:
        return f"was changed: its model is {manifest['model']!r}, but the model among its files is {models!r}"
    return ""


def read_release(s3: "S3Client", settings: Settings) -> Release:
    """Read the manifest of the release that the settings name.

    Raises:
        NoRelease: the release is not on S3.
        WrongManifest: its manifest is damaged, was changed, or describes another release.
    """
    key = f"releases/{settings.release}/{MANIFEST}"
    try:
        content = s3.get_object(Bucket=settings.bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("NoSuchKey", "NoSuchBucket"):
            raise  # denied access or throttling does not mean that the release is missing
        raise NoRelease(settings, error) from error
    try:
        manifest = json.loads(content)
        release = Release.from_manifest(settings.release_uri, manifest)
        fault = _fault_of_manifest(manifest, settings.release)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongManifest(settings, f"is not the manifest of a release ({error!r})") from error
    if fault:
        raise WrongManifest(settings, fault)
    return release


def check_wheels(release: Release, settings: Settings, instance_type: str) -> None:
    """Check that a release can be installed on instances of a type. Releases of earlier versions are for x86_64 only.

    Raises:
        NoWheels: a package has no wheel for the architecture of the type.
    """
    packages = release.lacks_wheels(INSTANCE_TYPES[instance_type].architecture)
    if packages:
        raise NoWheels(settings, instance_type, packages)


def damaged_files(s3: "S3Client", settings: Settings, release: Release) -> list[str]:
    """Return the files of a release that are missing or damaged on S3, each with what is wrong."""
    damages = []
    for path, file in release.files.items():
        damage = _damage(s3, settings.bucket, f"releases/{settings.release}/{path}", file)
        if damage:
            damages.append(f"{path} {damage}")
    return damages


def _damage(s3: "S3Client", bucket: str, key: str, file: File) -> str:
    """Return what is wrong with a file, or an empty string if it matches the manifest."""
    try:
        head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":  # the response to a HEAD request has no body, and so no NoSuchKey
            return "is missing"
        raise
    if head["ContentLength"] != file.size:
        return f"has {head['ContentLength']} bytes, not {file.size}"
    found = head.get("ChecksumSHA256", "")
    # A file that another program uploaded may have no SHA-256. If it was uploaded in parts, it has a checksum of the
    # parts' checksums, and its ETag ends with a hyphen and the number of parts:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    if found and "-" not in found + head["ETag"]:
        sha256 = base64.b64decode(found).hex()
    else:
        log.info("preflight: s3://%s/%s has no SHA-256 on S3, so its %d bytes are read", bucket, key, file.size)
        sha256 = _sha256(s3, bucket, key)
    return "" if sha256 == file.sha256 else f"has SHA-256 {sha256}, not {file.sha256}"


def _sha256(s3: "S3Client", bucket: str, key: str) -> str:
    digest = hashlib.sha256()
    for chunk in s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
