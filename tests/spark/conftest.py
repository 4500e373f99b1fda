import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyspark import SparkContext

from orchard_spark import objects
from sandbox import pictures
from tests.spark.ingested import RunFolders, write_ingested


@pytest.fixture
def context() -> Iterator[SparkContext]:
    """A new context, in the JVM that the steps under test also use."""
    with SparkContext.getOrCreate() as context:
        yield context


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    return RunFolders.below(f"file://{tmp_path}")


@pytest.fixture
def steps_bucket(aws_url: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an empty bucket that the steps' S3 clients find."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    objects.store.cache_clear()
    yield bucket
    objects.store.cache_clear()


@pytest.fixture
def step_bucket(steps_bucket: str, aws_url: str) -> Iterator[str]:
    """The name of an empty bucket that the tasks of a step find, too: their processes have the JVM's environment."""
    SparkContext._ensure_initialized()
    system: Any = SparkContext._jvm.java.lang.System  # type: ignore[union-attr]
    system.setProperty("spark.executorEnv.AWS_ENDPOINT_URL", aws_url)
    yield steps_bucket
    system.clearProperty("spark.executorEnv.AWS_ENDPOINT_URL")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rendered pictures, two of each class, that no test may change."""
    folder = tmp_path_factory.mktemp("rendered")
    pictures.write_dataset(folder, per_class=2)
    return folder


@pytest.fixture
def images(tmp_path: Path, rendered: Path) -> Path:
    """24 rendered pictures, two of each class."""
    folder = tmp_path / "images"
    shutil.copytree(rendered, folder)
    return folder


@pytest.fixture
def ingested(rendered: Path, folders: RunFolders) -> RunFolders:
    """A run whose ingest step has written the 24 pictures into two files."""
    write_ingested(folders, rendered)
    return folders


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        return buffer.getvalue()

    return encode
