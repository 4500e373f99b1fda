"""The system test of Airflow's EMR operators, `example_emr.py`, runs unmodified against the local AWS.

It is in the source distribution of the provider on PyPI. Airflow's own test helpers are not on PyPI. Stand-ins take
their place, which do not affect the tasks.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from sandbox import airflow, aws
from sandbox.folders import ROOT
from sandbox.processes import free_port

PROVIDER = "apache-airflow-providers-amazon"
DAG_ID, ENV_ID = "example_emr", "env1a2b3c4d"
HELPERS = {
    "watcher.py": """
from airflow.sdk import TriggerRule, task

@task(trigger_rule=TriggerRule.ONE_FAILED, retries=0)
def watcher():
    raise RuntimeError("a task has failed")
""",
    "system_tests.py": "def get_test_run(dag): return None\n",
    "version_compat.py": "AIRFLOW_V_3_0_PLUS = True\n",
}


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the system test and what it imports."""
    folder = tmp_path_factory.mktemp("provider")
    requirement = f"{PROVIDER}=={version(PROVIDER)}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", requirement]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the source of {requirement} cannot be downloaded: {done.stderr.splitlines()[-1:]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as stream:
        stream.extractall(folder, filter="data")
    (tests,) = folder.glob("*/tests")
    helpers = tests / "tests_common/test_utils"
    helpers.mkdir(parents=True)
    for name, text in HELPERS.items():
        (helpers / name).write_text(text)
    return tests


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A local AWS with EMR's default roles."""
    with aws.local_aws(tmp_path / "aws", free_port(), tmp_path / "local_aws.log") as url:
        iam = aws.client("iam", url)
        aws.create_role(iam, "EMR_DefaultRole", "elasticmapreduce")
        aws.create_role(iam, "EMR_EC2_DefaultRole", "ec2")
        iam.create_instance_profile(InstanceProfileName="EMR_EC2_DefaultRole")
        iam.add_role_to_instance_profile(InstanceProfileName="EMR_EC2_DefaultRole", RoleName="EMR_EC2_DefaultRole")
        yield url


@pytest.mark.slow
def test_every_task_of_the_system_test_succeeds(dags: Path, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "example_emr.py").write_bytes((dags / "system/amazon/aws/example_emr.py").read_bytes())
    env = {
        **airflow.airflow_environment(tmp_path / "airflow", url, "0123456789ab"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW_CONN_EMR_DEFAULT": "emr://",
        "PYTHONPATH": os.pathsep.join(map(str, (dags, ROOT))),
        "SYSTEM_TESTS_ENV_ID": ENV_ID,
        "EXECUTION_ROLE_ARN": "arn:aws:iam::123456789012:role/reader",
    }
    subprocess.run(["airflow", "db", "migrate"], env=env, cwd=tmp_path, capture_output=True, check=True)
    outcome = tmp_path / "outcome.json"
    command = [sys.executable, "-m", "sandbox.dag_run", "--dag-id", DAG_ID, "--outcome", str(outcome)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert outcome.exists(), done.stderr[-3000:] + done.stdout[-3000:]
    tasks = json.loads(outcome.read_text())["tasks"]
    watcher = tasks.pop("watcher")
    assert (set(tasks.values()), watcher) == ({"success"}, "skipped"), tasks
    assert {"create_job_flow", "modify_cluster", "add_steps", "wait_for_step", "remove_cluster"} <= tasks.keys()
