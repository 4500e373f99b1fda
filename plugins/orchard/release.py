"""A release is what a cluster needs, in one folder on S3: code, wheels, bootstrap, model, and a manifest of all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import ClientError

from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MANIFEST = "manifest.json"


class NoRelease(ValueError):
    """The release that the settings name is not on S3."""

    def __init__(self, settings: Settings, error: Exception) -> None:
        super().__init__(
            f"no release {settings.release!r} in {settings.release_uri} ({error}). Upload it with "
            f"`make release BUCKET={settings.bucket}` and set ORCHARD_RELEASE to the version that it prints"
        )


@dataclass(frozen=True)
class Release:
    """A release's manifest: the size in bytes of every file by its path in the folder."""

    uri: str
    model: str
    sizes: Mapping[str, int]

    @property
    def model_uri(self) -> str:
        """The MobileNetV2 model."""
        return f"{self.uri}/{self.model}"

    @classmethod
    def from_manifest(cls, uri: str, manifest: Mapping[str, Any]) -> Self:
        """The release behind a manifest that infra/release.py wrote."""
        return cls(uri, manifest["model"], {path: file["size"] for path, file in manifest["files"].items()})


def read_release(s3: "S3Client", settings: Settings) -> Release:
    """Read the manifest of the release that the settings name.

    Raises:
        NoRelease: it is not there, or not readable.
    """
    key = f"releases/{settings.release}/{MANIFEST}"
    try:
        content = s3.get_object(Bucket=settings.bucket, Key=key)["Body"].read()
    except ClientError as error:
        raise NoRelease(settings, error) from error
    return Release.from_manifest(settings.release_uri, json.loads(content))


def missing_files(s3: "S3Client", settings: Settings, release: Release) -> list[str]:
    """What is wrong with a release's files on S3, one sentence each."""
    prefix = f"releases/{settings.release}/"
    found: dict[str, int] = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=settings.bucket, Prefix=prefix):
        found |= {item["Key"].removeprefix(prefix): item["Size"] for item in page.get("Contents", [])}
    return [
        f"{release.uri}/{path} " + (f"has {found[path]} bytes, not {size}" if path in found else "is missing")
        for path, size in release.sizes.items()
        if found.get(path) != size
    ]
