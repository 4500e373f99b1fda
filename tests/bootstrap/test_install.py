import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark
import pytest

from infra import release
from local_aws.emr.node import Node, make_node

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCRIPT = Path(release.ROOT / "bootstrap/install.sh")

Install = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def node(aws_url: str, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node of the local EMR, in a folder whose path needs quotes."""
    return make_node(tmp_path_factory.mktemp("node") / "a b $c 'é'", aws_url, "eu-west-1", [])


@pytest.fixture
def install(node: Node) -> Install:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPT), *(node.localise(argument) for argument in arguments)]
        return subprocess.run(command, env=node.environment(), capture_output=True, text=True, check=False)

    return run


# Uses the libraries as the steps do: decode, infer, multiply, write and read Parquet.
USE = """
import io, pathlib, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
import features, ingest, pca
from orchard_spark import images, mobilenet, moments, objects
for image_format in images.FORMATS:
    file = io.BytesIO()
    Image.new("RGB", (100, 100), "red").save(file, image_format)
    decoded, _ = images.decode(file.getvalue())
model = mobilenet.load(pathlib.Path(sys.argv[1]).read_bytes())
values = np.stack(list(model.features([images.to_model_input(decoded, model.size_px)] * 9)))
moments.Moments.of(values)
objects.write(f"file://{sys.argv[2]}/written", b"x")
pq.write_table(pa.table({"features": list(values)}), f"{sys.argv[2]}/table.parquet")
print(values.shape, pq.read_table(f"{sys.argv[2]}/table.parquet").num_rows, np.__file__.split("/lib/")[0])
"""


@pytest.fixture
def release_uri(s3: "S3Client", bucket: str) -> str:
    """A release on S3 without wheels."""
    requirements = (SCRIPT.parent / "requirements.txt").read_bytes()
    s3.put_object(Bucket=bucket, Key="releases/1/bootstrap/requirements.txt", Body=requirements)
    return f"s3://{bucket}/releases/1"


def test_the_steps_python_is_installed_from_the_wheels_of_the_release(
    s3: "S3Client", bucket: str, build_dir: Path, node: Node, install: Install
) -> None:
    version = release.upload(s3, bucket, release.collect(build_dir))
    done = install("--release", f"s3://{bucket}/releases/{version}/", "--prefix", "/opt/orchard")
    assert done.returncode == 0, done.stderr
    assert "venv is ready after" in done.stdout
    fitting = sum(
        file.stat().st_size
        for file in (build_dir / "wheels").glob("*.whl")
        if file.name.endswith(("-any.whl", f"_{platform.machine()}.whl"))
    )
    (downloaded_mib,) = re.findall(r"downloaded after \d+ s: (\d+)M", done.stdout)
    assert int(downloaded_mib) <= 1.05 * fitting / 1024**2, "the wheels for other architectures are not downloaded"
    python = node.root / "opt/orchard/venv/bin/python"
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    names = {line.split()[0] for line in listed.splitlines()[2:]}
    assert {"ai-edge-litert", "boto3", "numpy", "obstore", "pillow", "pyarrow"} <= names
    assert not {"tensorflow-cpu", "tensorflow", "pyspark", "apache-airflow"} & names

    # PySpark and Py4J come with Spark on a node.
    (model,) = (build_dir / "model").glob("*.tflite")
    zips = (Path(pyspark.__file__).parent / "python/lib").glob("*.zip")
    modules = {"PYTHONPATH": ":".join(map(str, [release.ROOT / "spark", *zips]))}
    command: list[str | Path] = [python, "-W", "error::ImportWarning", "-c", USE, str(model), str(node.root / "tmp")]
    used = subprocess.run(command, env=node.environment() | modules, capture_output=True, text=True, check=False)
    assert used.stdout == f"(9, 1280) 9 {node.root}/opt/orchard/venv\n", used.stderr
    size = sum(file.lstat().st_blocks * 512 for file in (node.root / "opt/orchard").rglob("*"))
    assert size <= 400 * 1024**2


def test_a_missing_wheel_fails_with_its_name(release_uri: str, install: Install) -> None:
    done = install("--release", release_uri, "--prefix", "/opt/empty")
    assert done.returncode != 0
    assert "No matching distribution found for ai-edge-litert==" in done.stderr
    assert "install.sh: failed at line" in done.stderr


def test_a_release_for_another_architecture_fails_with_what_to_do_in_the_last_line(
    s3: "S3Client", bucket: str, release_uri: str, install: Install
) -> None:
    machine = platform.machine()
    (other,) = {*release.ARCHITECTURES} - {machine}
    for name in (f"ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_{other}.whl", "boto3-1.43.117-py3-none-any.whl"):
        s3.put_object(Bucket=bucket, Key=f"releases/1/wheels/{name}", Body=b"1")
    done = install("--release", release_uri, "--prefix", "/opt/other")
    assert done.returncode != 0
    assert "install.sh: failed at line" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"install.sh: {release_uri} has no wheels for {machine}. Upload a new release with `make release`, and set "
        "ORCHARD_RELEASE to the version that it prints"
    )


def test_a_modified_wheel_is_refused(
    s3: "S3Client", bucket: str, release_uri: str, build_dir: Path, install: Install
) -> None:
    (wheel,) = (build_dir / "wheels").glob(f"ai_edge_litert-*_{platform.machine()}.whl")
    s3.put_object(Bucket=bucket, Key=f"releases/1/wheels/{wheel.name}", Body=wheel.read_bytes() + b"more")
    done = install("--release", release_uri, "--prefix", "/opt/changed")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_a_missing_release_fails(bucket: str, install: Install) -> None:
    done = install("--release", f"s3://{bucket}/releases/none", "--prefix", "/opt/none")
    assert done.returncode != 0
    assert "404" in done.stderr
    assert "install.sh: failed at line" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--release", "s3://bucket/releases/1"], "--release and --prefix are required"),
        (["--prefx", "/opt/orchard"], "unknown option --prefx"),
    ],
)
def test_wrong_options_are_reported(install: Install, arguments: list[str], message: str) -> None:
    done = install(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_an_example(install: Install, option: str) -> None:
    done = install(option)
    assert done.returncode == 0
    assert "install.sh --release s3://BUCKET/releases/VERSION --prefix /opt/orchard" in done.stdout
