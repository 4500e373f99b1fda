import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyspark import SparkContext

from demo import pictures


@pytest.fixture
def context() -> SparkContext:
    """The context of the moment: the jobs under test stop theirs, the next one starts in the same JVM."""
    return SparkContext.getOrCreate()


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/run-1"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 rendered pictures, two of each class."""
    folder = tmp_path / "images"
    pictures.write_dataset(folder, per_class=2)
    return folder


@pytest.fixture
def read() -> Callable[[str], pa.Table]:
    def read_dataset(uri: str) -> pa.Table:
        return pq.read_table(uri.removeprefix("file://"))

    return read_dataset


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session", autouse=True)
def stopped_at_the_end() -> Iterator[None]:
    yield
    SparkContext.getOrCreate().stop()
