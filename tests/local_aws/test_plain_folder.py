import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_aws.plain_folder import UnusableFolder, linked, plain_path
from local_aws.server import LocalAws
from tests.local_aws.program import start
from tests.local_aws.user import LOG_URI, User, bash, command

STRANGE = 'a b $c "q" it\'s é,:#?%20 ${d}'


@pytest.fixture(autouse=True)
def _user(user: User) -> None:
    """Create the bucket: moto's buckets belong to the process."""


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder whose path needs quotes."""
    folder = tmp_path / STRANGE
    folder.mkdir()
    return folder


def test_a_folder_with_a_plain_path_needs_no_link(tmp_path: Path) -> None:
    with linked(tmp_path):
        assert plain_path(tmp_path) == tmp_path
        assert not tmp_path.is_symlink()


def test_the_link_to_a_folder_exists_only_while_it_is_used_and_is_always_the_same(strange: Path) -> None:
    link = plain_path(strange)
    for _ in range(2):
        with linked(strange):
            assert link.readlink() == strange
        assert not link.is_symlink()
        assert plain_path(strange) == link


def test_a_link_that_a_killed_server_left_is_used_again(strange: Path) -> None:
    link = plain_path(strange)
    link.symlink_to(strange)
    with linked(strange):
        assert link.readlink() == strange
    assert not link.is_symlink()


@pytest.fixture
def taken(strange: Path) -> Iterator[Path]:
    """The link of a folder, which points elsewhere."""
    link = plain_path(strange)
    link.symlink_to("/")
    yield link
    link.unlink()


def test_a_link_to_another_folder_is_not_used(strange: Path, taken: Path) -> None:
    with pytest.raises(FileExistsError, match=taken.name), linked(strange):
        pass
    assert taken.readlink() == Path("/")


@pytest.mark.parametrize("name", ["😀", os.fsdecode(b"\xff")])
def test_a_folder_that_java_cannot_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnusableFolder, match="characters above U\\+FFFF or bytes that are not UTF-8: use another"):
        LocalAws(tmp_path / name)
    assert start(tmp_path / name, 0, tmp_path / "log").wait(20) == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "ERROR local_aws: Java cannot use the folder" in line


PROGRAM = """
import json, sys
from pathlib import Path
from pyspark import SparkFiles
from pyspark.sql import SparkSession
import single

def in_a_task(_):
    import single
    return single.NAME + Path(SparkFiles.get("x.txt")).read_text()

spark = SparkSession.builder.getOrCreate()
tasks = spark.sparkContext.parallelize(range(1), 1).map(in_a_task).collect()
spark.range(3).write.parquet(sys.argv[1])
option = spark.sparkContext._jvm.System.getProperty("of.the.user")
print(json.dumps([tasks, spark.read.parquet(sys.argv[1]).count(), option, Path(sys.argv[1][7:]).is_dir()]))
"""


@pytest.mark.parametrize(
    "master",
    [
        "local[1]",
        pytest.param("local-cluster[1,1,512]", marks=pytest.mark.slow),
        pytest.param("standalone[1,1,512]", marks=pytest.mark.slow),
    ],
)
def test_clusters_run_in_a_data_folder_whose_path_needs_quotes(strange: Path, master: str) -> None:
    with LocalAws(strange, master=master) as server:
        user = User(server.endpoint_url)
        script = user.put(
            "folder/venv.sh", '#!/bin/bash\npython3.11 -m venv --without-pip "$1" && "$1/bin/python" -V\n'
        )
        options = ["--conf", "spark.driver.extraJavaOptions=-Dof.the.user=/mnt/x -XX:TieredStopAtLevel=1"]
        files = [
            *("--py-files", user.put("folder/single.py", "NAME = 'module '")),
            *("--files", user.put("folder/x.txt", "file")),
        ]
        cluster_id = user.start(
            bash("set -e; cd /opt; /opt/venv/bin/python -V; pwd > '/mnt/where'; cat \"/mnt/where\""),
            command("spark-submit", *options, *files, user.put("folder/p.py", PROGRAM), "file:///mnt/out"),
            keep_alive=True,
            bootstrap=[(script, "/opt/venv")],
        )
        user.wait_for(cluster_id, "WAITING")
        steps = user.steps(cluster_id)
        assert [step["Status"]["State"] for step in steps] == ["COMPLETED", "COMPLETED"], steps
        root = strange / "clusters" / cluster_id
        link = (root / "mnt/where").read_text().removesuffix("/opt\n")
        assert Path(link).samefile(root)
        stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{steps[1]['Id']}/stdout.gz")
        (line,) = [line for line in stdout.splitlines() if line.startswith("[[")]
        assert json.loads(line) == [["module file"], 3, f"{link}/mnt/x", True]

    # The next server runs steps at the same paths, because files of the node contain them.
    with LocalAws(strange, master=master) as server:
        user = User(server.endpoint_url)
        (step_id,) = user.add(cluster_id, bash("/opt/venv/bin/python -V && cd $(cat /mnt/where) && [ /opt -ef . ]"))
        user.wait_for_step(cluster_id, step_id, "COMPLETED")
        user.terminate(cluster_id)
        user.wait_for(cluster_id, "TERMINATED")
