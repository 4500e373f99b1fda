import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
import urllib3
from botocore.config import Config

from local_aws.emr.offerings import release_labels
from tests.local_aws.user import REGION, ROLES, User, bash

RUN: dict[str, Any] = {
    "Name": "a cluster",
    "ReleaseLabel": "emr-7.14.0",
    "Instances": {"MasterInstanceType": "m5.xlarge"},
    **ROLES,
}
JAR = {"Jar": "command-runner.jar"}
UNKNOWN_CLUSTER = "j-0000000000000"
UNKNOWN_STEP = "s-0000000000000"


def post(user: User, operation: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Send a request that boto3 would not send."""
    headers = {"X-Amz-Target": f"ElasticMapReduce.{operation}", "Content-Type": "application/x-amz-json-1.1"}
    answer = urllib3.request("POST", user.endpoint_url, headers=headers, body=body, retries=False)
    return answer.status, json.loads(answer.data)


def error(user: User, call: Callable[..., Any], **parameters: Any) -> tuple[str, str]:
    """Return the code and the message of the error that a call raises."""
    with pytest.raises(user.emr.exceptions.ClientError) as raised:
        call(**parameters)
    details = raised.value.response["Error"]
    return details["Code"], details["Message"]


def count_clusters(user: User) -> int:
    """Count the clusters on all pages."""
    return sum(len(page["Clusters"]) for page in user.emr.get_paginator("list_clusters").paginate())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Name": None}, 'Missing required parameter in input: "Name"'),
        ({"Instances": None}, 'Missing required parameter in input: "Instances"'),
        ({"Steps": [{"HadoopJarStep": JAR}]}, 'Missing required parameter in Steps[0]: "Name"'),
        ({"Steps": [{"Name": "x", "HadoopJarStep": {}}]}, 'in Steps[0].HadoopJarStep: "Jar"'),
        ({"Name": 5}, "Invalid type for parameter Name"),
        ({"Steps": "true"}, "Invalid type for parameter Steps"),
        ({"Instances": {"InstanceCount": "two"}}, "Invalid type for parameter Instances.InstanceCount"),
        ({"Instances": {"KeepJobFlowAliveWhenNoSteps": "no"}}, "Instances.KeepJobFlowAliveWhenNoSteps"),
        (
            {"Steps": [{"Name": "x", "ActionOnFailure": "IGNORE", "HadoopJarStep": JAR}]},
            "Value 'IGNORE' at 'Steps[0].ActionOnFailure' must be one of [TERMINATE_JOB_FLOW, TERMINATE_CLUSTER,",
        ),
        ({"ScaleDownBehavior": "NEVER"}, "Value 'NEVER' at 'ScaleDownBehavior' must be one of"),
        ({"ReleaseLabel": "emr-7.14"}, "The supplied release label is invalid: emr-7.14."),
        ({"ReleaseLabel": None}, "The supplied release label is invalid"),
        (
            {"BootstrapActions": [{"Name": "x", "ScriptBootstrapAction": {"Path": "s3://b/x"}}] * 17},
            "The maximum number of bootstrap actions is 16.",
        ),
    ],
)
def test_an_invalid_request_is_rejected_and_creates_no_cluster(
    user: User, change: dict[str, Any], message: str
) -> None:
    request = {key: value for key, value in {**RUN, **change}.items() if value is not None}
    before = count_clusters(user)
    status, answer = post(user, "RunJobFlow", json.dumps(request).encode())
    assert (status, answer["__type"]) == (400, "ValidationException")
    assert message in answer["message"]
    assert count_clusters(user) == before


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[]", b'"x"'])
def test_a_body_that_is_not_a_json_object_is_rejected(user: User, body: bytes) -> None:
    status, answer = post(user, "ListClusters", body)
    assert (status, answer["__type"]) == (400, "ValidationException")


def test_a_validation_error_lists_every_problem(user: User) -> None:
    _, answer = post(user, "RunJobFlow", b'{"Name": 5}')
    assert "parameter Name" in answer["message"]
    assert '"Instances"' in answer["message"]


def test_sixteen_bootstrap_actions_are_allowed(user: User) -> None:
    script = user.put("true.sh", "#!/bin/sh\n")
    assert user.end_code(user.run(bootstrap=[(script,)] * 16)) == "ALL_STEPS_COMPLETED"


def test_release_labels_depend_on_the_region() -> None:
    assert "emr-7.14.0" in release_labels(REGION)
    assert release_labels("nowhere-1") == ()


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("describe_cluster", {"ClusterId": UNKNOWN_CLUSTER}),
        ("list_steps", {"ClusterId": UNKNOWN_CLUSTER}),
        ("describe_step", {"ClusterId": UNKNOWN_CLUSTER, "StepId": UNKNOWN_STEP}),
        ("cancel_steps", {"ClusterId": UNKNOWN_CLUSTER, "StepIds": [UNKNOWN_STEP]}),
        ("list_instances", {"ClusterId": UNKNOWN_CLUSTER}),
        ("list_bootstrap_actions", {"ClusterId": UNKNOWN_CLUSTER}),
        ("add_job_flow_steps", {"JobFlowId": UNKNOWN_CLUSTER, "Steps": []}),
        ("terminate_job_flows", {"JobFlowIds": [UNKNOWN_CLUSTER]}),
        ("set_termination_protection", {"JobFlowIds": [UNKNOWN_CLUSTER], "TerminationProtected": True}),
        ("add_tags", {"ResourceId": UNKNOWN_CLUSTER, "Tags": []}),
        ("remove_tags", {"ResourceId": UNKNOWN_CLUSTER, "TagKeys": []}),
    ],
)
def test_an_unknown_cluster_is_an_error(user: User, operation: str, parameters: dict[str, Any]) -> None:
    code, message = error(user, getattr(user.emr, operation), **parameters)
    assert (code, message) == ("InvalidRequestException", f"Cluster id '{UNKNOWN_CLUSTER}' is not valid.")


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [("describe_step", {"StepId": UNKNOWN_STEP}), ("cancel_steps", {"StepIds": [UNKNOWN_STEP]})],
)
def test_an_unknown_step_is_an_error(user: User, operation: str, parameters: dict[str, Any]) -> None:
    cluster_id = user.run(bash("true"))
    code, message = error(user, getattr(user.emr, operation), ClusterId=cluster_id, **parameters)
    assert (code, message) == ("InvalidRequestException", f"Step id '{UNKNOWN_STEP}' is not valid.")


def test_a_request_with_one_unknown_cluster_changes_none(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    error(user, user.emr.terminate_job_flows, JobFlowIds=[cluster_id, UNKNOWN_CLUSTER])
    user.wait_for(cluster_id, "WAITING")


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_an_unknown_operation_is_rejected_without_retries(user: User, mode: Any) -> None:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    config = Config(retries={"mode": mode, "max_attempts": 3})
    client = session.client("emr", endpoint_url=user.endpoint_url, config=config)
    with pytest.raises(client.exceptions.ClientError) as raised:
        client.list_studios()
    answer = raised.value.response
    assert answer["Error"]["Code"] == "NotImplementedException"
    assert "ListStudios" in answer["Error"]["Message"]
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert answer["ResponseMetadata"]["RetryAttempts"] == 0
