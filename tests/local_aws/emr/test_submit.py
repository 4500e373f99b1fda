import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from local_aws.server import LocalAws
from tests.local_aws.user import LOG_URI, QUICK_JVM, User, command

# As on EMR, the program imports the modules of --py-files and finds the other files by name.
PROGRAM = """
import json
from pathlib import Path
from pyspark import SparkFiles
from pyspark.sql import SparkSession

import lib.fruits
import single

def in_a_task(_):
    import lib.fruits
    import single
    return {
        "imported": [lib.fruits.NAME, single.NAME],
        "found": [Path(SparkFiles.get(name)).read_text() for name in ("settings.json", "data/apple.txt")],
        "here": [Path(name).read_text() for name in ("settings.json", "data/apple.txt") if Path(name).exists()],
    }

context = SparkSession.builder.getOrCreate().sparkContext
(in_task,) = context.parallelize(range(1), 1).map(in_a_task).collect()
print(json.dumps({"driver": [lib.fruits.NAME, single.NAME], "master": context.master, **in_task}))
"""


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture(
    scope="module",
    params=[
        "local[*]",
        pytest.param("local-cluster[1,1,512]", marks=pytest.mark.slow),
        pytest.param("standalone[1,1,512]", marks=pytest.mark.slow),
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, user: User) -> Iterator[LocalAws]:
    with LocalAws(tmp_path_factory.mktemp("submit"), master=request.param) as server:
        yield server


def test_a_spark_program_finds_the_files_that_spark_submit_downloads_from_s3(server: LocalAws) -> None:
    user = User(server.endpoint_url)
    library = zipped(**{"lib/__init__.py": "", "lib/fruits.py": "NAME = 'of a zip'"})
    py_files = [user.put("submit/lib.zip", library), user.put("submit/single.py", "NAME = 'of a file'")]
    data = user.put("submit/data.zip", zipped(**{"apple.txt": "red"}))
    step = command(
        "spark-submit",
        *QUICK_JVM,
        *("--deploy-mode", "client"),
        *("--py-files", ",".join(py_files)),
        *("--files", user.put("submit/settings.json", "{}")),
        *("--archives", f"{data}#data"),
        user.put("submit/program.py", PROGRAM),
    )
    cluster_id = user.run(step)
    (listed,) = user.steps(cluster_id)
    assert listed["Status"]["State"] == "COMPLETED", listed["Status"]
    stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{listed['Id']}/stdout.gz")
    (line,) = [line for line in stdout.splitlines() if line.startswith("{")]
    output: dict[str, Any] = json.loads(line)
    assert output["driver"] == output["imported"] == ["of a zip", "of a file"]
    assert output["found"] == ["{}", "red"]
    # As on YARN, a task runs in the folder of its executor; in local mode, that is the folder of the driver.
    assert output["here"] == ([] if output["master"] == "local[*]" else ["{}", "red"])
