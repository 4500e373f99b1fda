"""A release is what a cluster needs, in one folder on S3: code, wheels, bootstrap, model, and a manifest of all."""

import base64
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import ClientError

from orchard.errors import WillNotHeal
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class NoRelease(WillNotHeal):
    """The release that the settings name is not on S3."""

    def __init__(self, settings: Settings, error: Exception) -> None:
        super().__init__(
            f"no release {settings.release!r} in {settings.release_uri} ({error}). Upload it with "
            f"`make release BUCKET={settings.bucket}` and set ORCHARD_RELEASE to the version that it prints"
        )


@dataclass(frozen=True)
class File:
    """One file of a release: its size in bytes, and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """A release's manifest: every file by its path in the folder."""

    uri: str
    model: str
    files: Mapping[str, File]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files.values())

    @property
    def model_uri(self) -> str:
        """The MobileNetV2 model."""
        return f"{self.uri}/{self.model}"

    @classmethod
    def from_manifest(cls, uri: str, manifest: Mapping[str, Any]) -> Self:
        """The release behind a manifest that infra/release.py wrote."""
        files = {path: File(file["size"], file["sha256"]) for path, file in manifest["files"].items()}
        return cls(uri, manifest["model"], files)


def read_release(s3: "S3Client", settings: Settings) -> Release:
    """Read the manifest of the release that the settings name.

    Raises:
        NoRelease: it is not there.
    """
    key = f"releases/{settings.release}/{MANIFEST}"
    try:
        content = s3.get_object(Bucket=settings.bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("NoSuchKey", "NoSuchBucket"):
            raise  # a refusal or a busy S3 tells nothing about the release
        raise NoRelease(settings, error) from error
    return Release.from_manifest(settings.release_uri, json.loads(content))


def damaged_files(s3: "S3Client", settings: Settings, release: Release) -> list[str]:
    """What is wrong with a release's files on S3, a few words each."""
    damages = []
    for path, file in release.files.items():
        damage = _damage(s3, settings.bucket, f"releases/{settings.release}/{path}", file)
        if damage:
            damages.append(f"{path} {damage}")
    return damages


def _damage(s3: "S3Client", bucket: str, key: str, file: File) -> str:
    """What is wrong with one file; nothing if it is as the manifest says."""
    try:
        head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":  # of a HEAD, which has no body to say NoSuchKey in
            return "is missing"
        raise
    if head["ContentLength"] != file.size:
        return f"has {head['ContentLength']} bytes, not {file.size}"
    found = head.get("ChecksumSHA256", "")
    # A file that came by another way than infra/release.py has no SHA-256 there, or, uploaded in parts, one of the
    # parts' checksums; only the ETag then ends in the number of parts on every S3:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    if found and "-" not in found + head["ETag"]:
        sha256 = base64.b64decode(found).hex()
    else:
        log.info("preflight: s3://%s/%s has no SHA-256 on S3: reading its %d bytes", bucket, key, file.size)
        sha256 = _sha256(s3, bucket, key)
    return "" if sha256 == file.sha256 else f"has SHA-256 {sha256}, not {file.sha256}"


def _sha256(s3: "S3Client", bucket: str, key: str) -> str:
    digest = hashlib.sha256()
    for chunk in s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
