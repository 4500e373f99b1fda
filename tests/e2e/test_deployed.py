"""The way of docs/deploy.md: `make deploy`, `make release`, a run on these resources, `make destroy`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox import airflow, aws, pictures
from sandbox.folders import ROOT
from sandbox.processes import free_port

STACK = "fruits"


@dataclass(frozen=True)
class Account:
    """An account at the URL of a local AWS."""

    url: str
    folder: Path

    def make(self, *arguments: str) -> dict[str, str]:
        """Run a target of the Makefile, and return the settings that it prints."""
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MAKE", "MFLAGS"))},
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "deployer",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": aws.REGION,
        }
        command = ["make", "--no-print-directory", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if line.startswith("ORCHARD_"))

    def run(self, settings: dict[str, str]) -> dict[str, str]:
        """Run the DAG with these settings, and return the state of each task."""
        env = airflow.airflow_environment(self.folder / "airflow", self.url, settings["ORCHARD_RELEASE"]) | settings
        subprocess.run(["airflow", "db", "migrate"], env=env, cwd=self.folder, capture_output=True, check=True)
        outcome = self.folder / "outcome.json"
        command = [sys.executable, "-m", "sandbox.dag_run", "--dag-id", "fruit_features", "--outcome", str(outcome)]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
        tasks: dict[str, str] = json.loads(outcome.read_text())["tasks"]
        return tasks


@pytest.fixture(params=["", "--like-emr"], ids=["quick", "like EMR"])
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Account]:
    """An account whose clusters are ready at once, or as slow as on EMR, which then also throttles requests."""
    monkeypatch.setenv("LOCAL_AWS_OPTIONS", request.param)
    # tests/infra/test_policies.py knows the names of the sandbox's resources only.
    monkeypatch.delenv("LOCAL_AWS_CALLS")
    with aws.local_aws(tmp_path / "aws", free_port(), tmp_path / "local_aws.log") as url:
        yield Account(url, tmp_path)


@pytest.mark.slow
def test_a_run_succeeds_on_the_resources_of_the_stack_which_can_be_deleted_afterwards(account: Account) -> None:
    settings = account.make("deploy", f"STACK={STACK}", "PARAMETERS=CreateVpc=true AlertEmail=team@example.com")
    bucket = settings["ORCHARD_BUCKET"]
    settings |= account.make("release", f"BUCKET={bucket}")
    pictures.write_dataset(account.folder / "pictures", per_class=1)
    s3 = aws.client("s3", account.url)
    for file in (account.folder / "pictures").rglob("*.jpg"):
        name = file.relative_to(account.folder / "pictures").as_posix()
        s3.put_object(Bucket=bucket, Key=f"{settings['ORCHARD_DATASET_PREFIX']}{name}", Body=file.read_bytes())

    assert set(account.run(settings).values()) == {"success"}
    emr = aws.client("emr", account.url)
    (summary,) = emr.list_clusters()["Clusters"]
    cluster = emr.describe_cluster(ClusterId=summary["Id"])["Cluster"]
    assert cluster["ServiceRole"].endswith(settings["ORCHARD_SERVICE_ROLE"])
    assert cluster["SecurityConfiguration"] == settings["ORCHARD_SECURITY_CONFIGURATION"]
    assert cluster["Ec2InstanceAttributes"]["Ec2SubnetId"] in settings["ORCHARD_SUBNET_IDS"].split(",")
    tables = [
        table["Name"] for table in aws.client("glue", account.url).get_tables(DatabaseName="orchard")["TableList"]
    ]
    assert set(tables) == {"features", "images", "rejects", "embeddings", "pca_models", "runs"}

    account.make("destroy", f"STACK={STACK}")
    assert bucket in [found["Name"] for found in s3.list_buckets()["Buckets"]], "nothing is deleted without CONFIRM"
    account.make("destroy", f"STACK={STACK}", f"CONFIRM={STACK}")
    assert s3.list_buckets()["Buckets"] == []
    assert aws.client("glue", account.url).get_databases()["DatabaseList"] == []
    assert aws.client("cloudformation", account.url).describe_stacks()["Stacks"] == []
