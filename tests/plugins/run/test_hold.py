"""The hold of a cluster: its end, how to reach it, and what a held cluster means for others."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from orchard.cluster.request import ClusterSpec, run_job_flow_request
from orchard.cluster.tags import DEPLOYMENT_TAG, HELD_TAG
from orchard.run.hold import Hold, NoJupyterHub, NoPrimaryNode, check_hold, hold_of, start_hold
from orchard.run.summary import published_at
from orchard.settings import Settings
from tests.plugins.plans import catalog_of, plan, planned, put_images
from tests.plugins.published import publish

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

UNTIL = datetime(2026, 11, 22, 3, 10, 5, tzinfo=UTC)
HOLD = Hold("j-1", "i-0123456789abcdef0", "eu-west-1", UNTIL)
SETTINGS = Settings(bucket="fruits-data", release="1")


def test_the_command_forwards_the_port_of_jupyterhub_in_one_line_that_a_shell_understands() -> None:
    assert HOLD.command == (
        "aws ssm start-session --region eu-west-1 --target i-0123456789abcdef0 --document-name "
        """AWS-StartPortForwardingSession --parameters '{"portNumber":["9443"],"localPortNumber":["9443"]}'"""
    )
    assert shlex.split(HOLD.command)[-1] == '{"portNumber":["9443"],"localPortNumber":["9443"]}'


def test_the_lines_have_the_end_with_its_time_zone_the_command_the_user_and_how_to_end_early() -> None:
    kept, command, opened, early = HOLD.lines()
    assert "j-1 is kept until 2026-11-22 03:10 UTC" in kept
    assert HOLD.command in command
    assert "https://127.0.0.1:9443 (user jovyan, password jupyter)" in opened
    assert "mark this task as success" in early


def test_an_xcom_holds_all_of_it() -> None:
    xcom = HOLD.as_xcom()
    assert (xcom["until"], xcom["command"], xcom["url"]) == (
        "2026-11-22T03:10:05+00:00",
        HOLD.command,
        "https://127.0.0.1:9443",
    )
    assert Hold.from_xcom(xcom) == HOLD


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        {},
        {"until": "soon"},
        {"until": "2026-11-22T03:10:05"},  # without a time zone
        {"until": 7},
        {"instance_id": "i-1; rm -rf /"},
        {"region": None},
        {"cluster_id": ["j-1"]},
    ],
)
def test_an_xcom_of_another_form_is_no_hold(odd: Any) -> None:
    assert Hold.from_xcom({**HOLD.as_xcom(), **odd} if isinstance(odd, dict) and odd else odd) is None


@pytest.mark.parametrize("label", ["emr-8.0.0", "emr-10.1.0"])
def test_a_release_without_jupyterhub_cannot_be_held(label: str) -> None:
    settings = replace(SETTINGS, release_label=label)
    message = rf"hold_minutes is 60, but ORCHARD_RELEASE_LABEL is {label}, .* set hold_minutes to 0, or the label"
    with pytest.raises(NoJupyterHub, match=message):
        check_hold(settings, 60)
    check_hold(settings, 0)


@pytest.mark.parametrize("label", ["emr-7.14.0", "emr-7.1.0"])
def test_a_release_with_jupyterhub_can_be_held(label: str) -> None:
    check_hold(replace(SETTINGS, release_label=label), 240)


@pytest.mark.parametrize(
    ("value", "minutes"), [("60", 60), ("240", 240), ("100000", 240), ("", 0), ("1h", 0), ("-5", 0)]
)
def test_the_tag_of_a_cluster_counts_up_to_the_longest_hold(value: str, minutes: int) -> None:
    assert hold_of({"orchard:hold-minutes": value}) == timedelta(minutes=minutes)


@pytest.fixture
def cluster_id(emr: "EMRClient", role: str) -> Iterator[str]:
    """A cluster of instance fleets that is to be held, without its bootstrap action."""
    tags = {DEPLOYMENT_TAG: SETTINGS.deployment}
    spec = ClusterSpec(name="orchard-held", instance_type="m5.xlarge", core_instances=1, tags=tags, hold_minutes=60)
    request = run_job_flow_request(spec, replace(SETTINGS, service_role=role, instance_profile=role))
    created = emr.run_job_flow(**{**request, "BootstrapActions": []})["JobFlowId"]
    emr.get_waiter("cluster_running").wait(ClusterId=created, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    yield created
    emr.terminate_job_flows(JobFlowIds=[created])


def test_a_hold_names_the_primary_node_and_marks_the_cluster_with_its_end(emr: "EMRClient", cluster_id: str) -> None:
    hold = start_hold(emr, SETTINGS, cluster_id, UNTIL)
    instances = emr.list_instances(ClusterId=cluster_id, InstanceFleetType="MASTER")["Instances"]
    assert [hold.instance_id] == [instance["Ec2InstanceId"] for instance in instances]
    tags = {tag["Key"]: tag["Value"] for tag in emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Tags"]}
    assert tags[HELD_TAG] == UNTIL.isoformat()
    assert start_hold(emr, SETTINGS, cluster_id, UNTIL) == hold, "as after a retry"


def test_a_cluster_without_a_primary_node_is_named(emr: "EMRClient", cluster_id: str) -> None:
    emr.terminate_job_flows(JobFlowIds=[cluster_id])
    emr.get_waiter("cluster_terminated").wait(ClusterId=cluster_id, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    with pytest.raises(NoPrimaryNode, match=cluster_id):
        start_hold(emr, SETTINGS, cluster_id, UNTIL)


def test_a_plan_refuses_a_hold_that_its_emr_release_cannot_have(s3: "S3Client", released: Settings) -> None:
    put_images(s3, released.bucket)
    with pytest.raises(NoJupyterHub, match=r"emr-8\.0\.0"):
        plan(s3, replace(released, release_label="emr-8.0.0"), hold_minutes=1)


def test_the_plan_of_a_run_with_a_hold_differs_by_the_hold_only(s3: "S3Client", released: Settings) -> None:
    put_images(s3, released.bucket)
    without, with_hold = planned(s3, released), planned(s3, released, hold_minutes=90)
    cluster, held = without.run["cluster"], with_hold.run["cluster"]
    assert {key for key in held if held[key] != cluster[key]} == {
        *("Applications", "Configurations", "AutoTerminationPolicy", "Tags"),
    }
    assert [tag for tag in held["Tags"] if tag not in cluster["Tags"]] == [
        {"Key": "orchard:hold-minutes", "Value": "90"}
    ]
    assert (without.run["hold_minutes"], with_hold.run["hold_minutes"]) == (0, 90)
    steps = [key for key in without.run if key.endswith("_step")]
    assert all(without.run[key] == with_hold.run[key] for key in steps)  # type: ignore[literal-required]
    estimates = [run.changes["estimate"] for run in (without, with_hold)]
    assert estimates[1]["minutes"] == pytest.approx(estimates[0]["minutes"] + 90, abs=0.1)
    assert estimates[1]["usd"] == pytest.approx(estimates[0]["usd"] + 1.5 * 3 * 0.262, abs=0.001)
    assert with_hold.changes["sentence"].endswith(", of which 1 h 30 min on hold, about $1.29")


def test_a_run_with_nothing_to_do_says_that_it_holds_no_cluster(s3: "S3Client", released: Settings) -> None:
    put_images(s3, released.bucket)
    publish(s3, catalog_of(s3, released), released)
    sentence = planned(s3, released, hold_minutes=60).changes["sentence"]
    assert sentence.startswith("nothing to do: ")
    assert sentence.endswith("; hold_minutes has no effect without a cluster: set full_refresh")
    assert "hold_minutes" not in planned(s3, released).changes["sentence"]


def test_the_time_of_publication_is_that_of_the_summary(s3: "S3Client", bucket: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    s3.put_object(Bucket=bucket, Key="runs/images/1/summary.json", Body=b"{}")
    found = published_at(s3, f"s3://{bucket}/runs/images/1")
    assert before <= found <= datetime.now(UTC)
    assert found.tzinfo is UTC
