"""The policies of the stack allow every call that Orchard makes, and not more.

iam-simulate evaluates them. It is an npm package under the AGPL, which only this test installs, into build/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from local_aws.server import LocalAws
from sandbox import aws
from tests.conftest import ROOT
from tests.infra.deployed_stack import ACCOUNT, DATASETS, Deployed, create_stack, policy_document

SIMULATOR = Path(__file__).parent / "simulator"
INSTALLED = ROOT / "build/simulator"
# The e2e and fault tests record their calls here, if they have run.
RECORDED = ROOT / "build/calls"
REGION, DEPLOYMENT, DATABASE = aws.REGION, "orchard", "policies"
ALLOWED = "Allowed"
CLUSTER = f"arn:aws:elasticmapreduce:{REGION}:{ACCOUNT}:cluster/j-1"
GLUE = f"arn:aws:glue:{REGION}:{ACCOUNT}"
BUCKET_NAME = "fruits-of-the-policies"
BUCKET = f"arn:aws:s3:::{BUCKET_NAME}"
TAG, EMR_TAG = "orchard:deployment", "for-use-with-amazon-emr-managed-policies"
PRINCIPALS = ("airflow", "nodes")
# The fault tests give each run a dataset of its own, and so does the run with a new prefix of tests/e2e/test_up.py. To
# the stack, they are all the one in images/.
DATASET_FOLDER = re.compile(r"(?:^|/)(?:dataset-\w+|by-hand)/")


class Call(NamedTuple):
    """A call, with the ARNs that IAM checks, and the condition keys of the request and of the resource."""

    principal: str
    action: str
    resources: tuple[str, ...]
    context: Mapping[str, str] = {}


@pytest.fixture(scope="module")
def simulator() -> Path:
    """The folder in which the simulator is installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm, and they are not installed")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for file in SIMULATOR.iterdir():
        shutil.copy(file, INSTALLED)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install iam-simulate: {done.stderr.strip().splitlines()[-1:]}")
    return INSTALLED


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        names = {"BucketName": BUCKET_NAME, "DatabaseName": DATABASE, "DeploymentName": DEPLOYMENT}
        yield create_stack(server.endpoint_url, "fruits", **names, **DATASETS)


@pytest.fixture(scope="module")
def policies(stack: Deployed) -> dict[str, list[Any]]:
    """The policies of each principal."""
    return policies_of(stack)


@pytest.fixture(scope="module")
def policies_with_hold(stack: Deployed, policies: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The policies of a stack whose clusters can be held, with the names of the other stack."""
    names = {"BucketName": f"{BUCKET_NAME}-held", "DatabaseName": "held_policies", "DeploymentName": DEPLOYMENT}
    held = create_stack(stack.url, "held-fruits", HoldClusters="true", **names, **DATASETS)
    text = json.dumps(policies_of(held))
    for resource in ("Bucket", "Database", "NodeRole", "ServiceRole", "InstanceProfile", "AlertTopic"):
        text = text.replace(held.ids[resource], stack.ids[resource])
    renamed: dict[str, list[Any]] = json.loads(text)
    assert renamed != policies
    return renamed


def policies_of(stack: Deployed) -> dict[str, list[Any]]:
    iam, role, ids = stack.client("iam"), stack.ids["NodeRole"], stack.ids
    inline = iam.list_role_policies(RoleName=role)["PolicyNames"]
    return {
        "airflow": [policy_document(stack, ids[name]) for name in ("AirflowDataPolicy", "AirflowClusterPolicy")],
        "nodes": [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in inline],
    }


def evaluate(simulator: Path, policies: dict[str, list[Any]], calls: Sequence[Call]) -> list[list[str]]:
    """Return the result of each call for each of its resources."""
    given = json.dumps({"policies": policies, "calls": [call._asdict() for call in calls]})
    done = subprocess.run(
        ["node", "evaluate.mjs"], cwd=simulator, input=given, capture_output=True, text=True, check=True
    )
    results: list[list[str]] = json.loads(done.stdout)
    return results


def role(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


def of_cluster(action: str, deployment: str | None) -> Call:
    tags = {} if deployment is None else {f"aws:ResourceTag/{TAG}": deployment}
    return Call("airflow", f"elasticmapreduce:{action}", (CLUSTER,), tags)


def on_object(principal: str, action: str, key: str, bucket: str = BUCKET) -> Call:
    return Call(principal, f"s3:{action}", (f"{bucket}/{key}",))


def new_cluster(action: str, resource: str, deployment: str | None, **tags: str) -> Call:
    requested = {} if deployment is None else {f"aws:RequestTag/{TAG}": deployment}
    return Call("airflow", f"elasticmapreduce:{action}", (resource,), {**requested, **tags})


FOR_EMR = {f"aws:RequestTag/{EMR_TAG}": "true"}
CHANGES = ("AddJobFlowSteps", "CancelSteps", "TerminateJobFlows", "SetTerminationProtection", "ListSteps")
# The calls that must be denied, by what they would do.
DENIED: Mapping[str, Iterable[Call]] = {
    "read what is not a dataset": [
        *(on_object(principal, "GetObject", "private/keys.txt") for principal in PRINCIPALS),
        *(on_object(principal, "GetObject", "2026/1.jpg", "arn:aws:s3:::plums") for principal in PRINCIPALS),
        *(on_object(principal, "GetObject", "2025/1.jpg", "arn:aws:s3:::pears") for principal in PRINCIPALS),
        on_object("airflow", "GetObject", "certificates/nodes.zip"),
        Call("nodes", "s3:ListBucket", (BUCKET,), {"s3:prefix": "private/"}),
        Call("nodes", "s3:ListBucket", (BUCKET,)),
        *(Call(principal, "s3:ListBucket", ("arn:aws:s3:::plums",)) for principal in PRINCIPALS),
    ],
    "change a release": [
        on_object(principal, action, "releases/0123456789ab/bootstrap/install.sh")
        for principal in PRINCIPALS
        for action in ("PutObject", "DeleteObject")
    ],
    "change a dataset": [
        *(
            on_object(principal, action, "images/Apple/1.jpg")
            for principal in PRINCIPALS
            for action in ("PutObject", "DeleteObject")
        ),
        *(on_object(principal, "PutObject", "2026/1.jpg", "arn:aws:s3:::pears") for principal in PRINCIPALS),
    ],
    "delete what is to stay": [
        on_object("nodes", "DeleteObject", "logs/j-1/steps/s-1/stdout.gz"),
        on_object("nodes", "DeleteObject", "locks/datasets/images/slot-0.json"),
        on_object("nodes", "PutObject", "locks/datasets/images/slot-0.json"),
        on_object("airflow", "DeleteObject", "orchard.parquet", "arn:aws:s3:::other-warehouse"),
        on_object("airflow", "DeleteObjectVersion", "warehouse/images/data/1.parquet"),
        Call("airflow", "s3:DeleteBucket", (BUCKET,)),
        Call("airflow", "glue:DeleteTable", (f"{GLUE}:table/{DATABASE}/images",)),
        Call("airflow", "glue:DeleteDatabase", (f"{GLUE}:database/{DATABASE}",)),
    ],
    "weaken the bucket": [
        Call("airflow", f"s3:{action}", (BUCKET,))
        for action in (
            "PutBucketPolicy",
            "PutBucketVersioning",
            "PutLifecycleConfiguration",
            "PutBucketPublicAccessBlock",
        )
    ],
    "change tables of others": [
        Call("airflow", f"glue:{action}", (f"{GLUE}:table/sales/orders",)) for action in ("UpdateTable", "GetTable")
    ],
    "use a cluster without our tag": [of_cluster(action, None) for action in CHANGES],
    "use a cluster of another deployment": [of_cluster(action, "vegetables") for action in CHANGES],
    "create a cluster without our tag": [
        new_cluster("RunJobFlow", "*", None, **FOR_EMR),
        new_cluster("RunJobFlow", "*", "vegetables", **FOR_EMR),
        new_cluster("RunJobFlow", "*", DEPLOYMENT),
    ],
    "take over a cluster of another deployment": [
        new_cluster("AddTags", CLUSTER, DEPLOYMENT, **{f"aws:ResourceTag/{TAG}": "vegetables"})
    ],
    "pass another role, or pass a role to another service": [
        Call("airflow", "iam:PassRole", (role("Administrator"),), {"iam:PassedToService": "ec2.amazonaws.com"}),
        Call("airflow", "iam:PassRole", ("NODES",), {"iam:PassedToService": "lambda.amazonaws.com"}),
        Call("airflow", "iam:PassRole", ("NODES",), {"iam:PassedToService": "elasticmapreduce.amazonaws.com"}),
        Call("airflow", "iam:PassRole", ("SERVICE",), {"iam:PassedToService": "ec2.amazonaws.com"}),
        Call("airflow", "iam:PassRole", ("NODES",)),
    ],
    "change IAM": [
        Call("airflow", f"iam:{action}", ("NODES",))
        for action in ("AttachRolePolicy", "PutRolePolicy", "UpdateAssumeRolePolicy", "DeleteRole", "CreateRole")
    ],
    "let the nodes call other services": [
        Call("nodes", "iam:PassRole", ("NODES",), {"iam:PassedToService": "ec2.amazonaws.com"}),
        Call("nodes", "elasticmapreduce:RunJobFlow", ("*",), {f"aws:RequestTag/{TAG}": DEPLOYMENT, **FOR_EMR}),
        Call("nodes", "elasticmapreduce:AddJobFlowSteps", (CLUSTER,), {f"aws:ResourceTag/{TAG}": DEPLOYMENT}),
        Call("nodes", "glue:UpdateTable", (f"{GLUE}:table/{DATABASE}/images",)),
        Call("nodes", "sns:Publish", (f"arn:aws:sns:{REGION}:{ACCOUNT}:fruits",)),
    ],
    "let the nodes keep notebooks, which people run, or accept sessions, unless clusters can be held": [
        *(on_object("nodes", action, "notebooks/jupyter/jovyan/1.ipynb") for action in ("GetObject", "PutObject")),
        Call("nodes", "s3:ListBucket", (BUCKET,), {"s3:prefix": "notebooks/"}),
        Call("nodes", "ssm:UpdateInstanceInformation", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1",)),
        Call("nodes", "ssmmessages:OpenDataChannel", ("*",)),
        Call("airflow", "iam:SimulatePrincipalPolicy", ("NODES",)),
    ],
    "alert others": [Call("airflow", "sns:Publish", (f"arn:aws:sns:{REGION}:{ACCOUNT}:sales",))],
    "do anything else": [
        Call("airflow", "ec2:TerminateInstances", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1",)),
        Call("airflow", "ec2:RunInstances", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*",)),
        Call("airflow", "elasticmapreduce:DeleteSecurityConfiguration", ("*",)),
        Call("airflow", "kms:Decrypt", (f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1",)),
    ],
}


def of_stack(stack: Deployed, call: Call) -> Call:
    """Return a call whose roles are those of the stack."""
    names = {"NODES": role(stack.ids["NodeRole"]), "SERVICE": role(stack.ids["ServiceRole"])}
    return call._replace(resources=tuple(names.get(resource, resource) for resource in call.resources))


def test_at_least_thirty_calls_must_be_denied() -> None:
    assert sum(len([*calls]) for calls in DENIED.values()) >= 30


@pytest.mark.parametrize("purpose", DENIED)
def test_nobody_may(stack: Deployed, policies: dict[str, list[Any]], simulator: Path, purpose: str) -> None:
    calls = [of_stack(stack, call) for call in DENIED[purpose]]
    results = evaluate(simulator, policies, calls)
    wrong = [call for call, result in zip(calls, results, strict=True) if not set(result) <= {"ImplicitlyDenied"}]
    assert wrong == [], results


HOLD = "let the nodes keep notebooks, which people run, or accept sessions, unless clusters can be held"


@pytest.mark.parametrize("purpose", [purpose for purpose in DENIED if purpose != HOLD])
def test_nobody_may_if_clusters_can_be_held(
    stack: Deployed, policies_with_hold: dict[str, list[Any]], simulator: Path, purpose: str
) -> None:
    test_nobody_may(stack, policies_with_hold, simulator, purpose)


def test_the_nodes_of_a_held_cluster_may_keep_notebooks_and_accept_sessions_and_not_more(
    stack: Deployed, policies_with_hold: dict[str, list[Any]], simulator: Path
) -> None:
    assert denied(simulator, policies_with_hold, [of_stack(stack, call) for call in DENIED[HOLD]]) == []
    held_tag = new_cluster("AddTags", CLUSTER, DEPLOYMENT, **{f"aws:ResourceTag/{TAG}": DEPLOYMENT})
    assert denied(simulator, policies_with_hold, [held_tag]) == []
    refused = [
        Call("nodes", "ssm:SendCommand", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1",)),
        Call("nodes", "ssm:StartSession", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1",)),
        Call("nodes", "ssm:GetParameter", (f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/secret",)),
        on_object("nodes", "PutObject", "notebook.txt"),
        on_object("airflow", "PutObject", "notebooks/jupyter/jovyan/1.ipynb"),
        Call("airflow", "iam:SimulatePrincipalPolicy", (role("Administrator"),)),
    ]
    assert {result for each in evaluate(simulator, policies_with_hold, refused) for result in each} == {
        "ImplicitlyDenied"
    }


def session(deployment: str | None) -> Call:
    """Return the call that opens a session on an instance, which EC2 tags as EMR tagged its cluster."""
    tags = {} if deployment is None else {f"ssm:resourceTag/{TAG}": deployment}
    return Call("person", "ssm:StartSession", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1",), tags)


def document_call(name: str) -> Call:
    # The documents of AWS have no account, which the simulator does not know.
    return Call("person", "ssm:StartSession", (f"arn:aws:ssm:{REGION}:{ACCOUNT}:document/{name}",))


def test_the_policy_of_the_page_about_deployment_opens_sessions_on_the_nodes_of_the_deployment_only(
    simulator: Path,
) -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    (policy,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    policies = {"person": [json.loads(policy.replace("REGION", REGION).replace("ACCOUNT", ACCOUNT))]}
    own = f"arn:aws:ssm:{REGION}:{ACCOUNT}:session/jo-0123456789abcdef0"
    allowed = [session(DEPLOYMENT), document_call("AWS-StartPortForwardingSession")]
    assert denied(simulator, policies, allowed) == []
    refused = [
        *(session(deployment) for deployment in ("vegetables", None)),
        *(document_call(name) for name in ("SSM-SessionManagerRunShell", "AWS-StartSSHSession")),
        Call("person", "ssm:SendCommand", (f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1",)),
        Call("person", "ssm:TerminateSession", (own,), {"aws:userid": "ann"}),
    ]
    assert {result for each in evaluate(simulator, policies, refused) for result in each} == {"ImplicitlyDenied"}
    terminate = Call("person", "ssm:TerminateSession", (own,), {"aws:userid": "jo"})
    assert denied(simulator, policies, [terminate]) == []


def test_the_calls_of_the_readme_are_allowed(stack: Deployed, policies: dict[str, list[Any]], simulator: Path) -> None:
    """One call of each kind, among them those that a run without faults does not make."""
    calls = [
        *(of_cluster(action, DEPLOYMENT) for action in CHANGES),
        of_cluster("CreatePersistentAppUI", DEPLOYMENT),
        new_cluster("RunJobFlow", "*", DEPLOYMENT, **FOR_EMR),
        new_cluster("AddTags", CLUSTER, DEPLOYMENT),
        Call("airflow", "iam:PassRole", ("NODES",), {"iam:PassedToService": "ec2.amazonaws.com"}),
        Call("airflow", "iam:PassRole", ("SERVICE",), {"iam:PassedToService": "elasticmapreduce.amazonaws.com"}),
        Call("airflow", "glue:GetTables", (f"{GLUE}:catalog", f"{GLUE}:database/sales", f"{GLUE}:table/sales/*")),
        *(on_object(principal, "GetObject", "2026/1.jpg", "arn:aws:s3:::pears") for principal in PRINCIPALS),
        *(Call(principal, "s3:ListBucket", ("arn:aws:s3:::pears",)) for principal in PRINCIPALS),
        on_object("nodes", "PutObject", "logs/j-1/steps/s-1/stdout.gz"),
        on_object("nodes", "GetObject", "certificates/nodes.zip"),
        Call("airflow", "sns:Publish", (stack.ids["AlertTopic"],)),
    ]
    assert denied(simulator, policies, [of_stack(stack, call) for call in calls]) == []


def denied(simulator: Path, policies: dict[str, list[Any]], calls: Sequence[Call]) -> list[str]:
    """Return the calls that are not allowed, each with the results."""
    results = evaluate(simulator, policies, calls)
    return [f"{call}: {result}" for call, result in zip(calls, results, strict=True) if set(result) != {ALLOWED}]


def recorded_calls(file: Path, stack: Deployed) -> list[Call]:
    """Return the calls of a record, of Airflow and of the nodes, with the names of the stack."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    tag = f"aws:RequestTag/{TAG}"
    own = {each["context"][tag] for each in found if each["action"].endswith(":RunJobFlow") and tag in each["context"]}
    spot = "AWSServiceRoleForEC2Spot"
    profiles = f"arn:aws:iam::{ACCOUNT}:instance-profile"
    names = {
        role(aws.SERVICE_ROLE): role(stack.ids["ServiceRole"]),
        role(aws.INSTANCE_PROFILE): role(stack.ids["NodeRole"]),
        role(spot): role(f"aws-service-role/spot.amazonaws.com/{spot}"),
        f"{profiles}/{aws.INSTANCE_PROFILE}": f"{profiles}/{stack.ids['InstanceProfile']}",
        f"arn:aws:sns:{REGION}:{ACCOUNT}:alerts": stack.ids["AlertTopic"],  # of the fault tests
    }

    prefixes = {
        f"arn:aws:s3:::{aws.BUCKET}": BUCKET,
        **{f"{GLUE}:{kind}/orchard": f"{GLUE}:{kind}/{DATABASE}" for kind in ("database", "table")},
    }

    def name_of(resource: str) -> str:
        for recorded, own_name in prefixes.items():
            if resource == recorded or resource.startswith(f"{recorded}/"):
                return DATASET_FOLDER.sub("/images/", own_name + resource.removeprefix(recorded))
        return names.get(resource, resource)

    return [
        Call(
            each["principal"],
            each["action"],
            tuple(name_of(resource) for resource in each["resources"]),
            {
                key: DEPLOYMENT if key.endswith(f"/{TAG}") and value in own else DATASET_FOLDER.sub("images/", value)
                for key, value in each["context"].items()
            },
        )
        for each in found
        if each["principal"] in PRINCIPALS
    ]


def is_of_the_deployment(call: Call) -> bool:
    """Return whether a call works on something that exists in a deployment of the stack.

    The stack creates the database, so Orchard does not. A cluster without tags does not exist, and neither does a
    bucket with this name: fault tests invent them.
    """
    on_missing_cluster = ":cluster/" in call.resources[0] and not call.context
    on_missing_bucket = call.resources[0].startswith("arn:aws:s3:::no-such-bucket")
    return call.action != "glue:CreateDatabase" and not on_missing_cluster and not on_missing_bucket


@pytest.mark.slow
def test_every_call_that_was_recorded_is_allowed(
    stack: Deployed,
    policies: dict[str, list[Any]],
    policies_with_hold: dict[str, list[Any]],
    simulator: Path,
    tmp_path: Path,
) -> None:
    """A run of the demo, and what the e2e and fault tests, which hold clusters, have recorded if they have run."""
    record = tmp_path / "calls.jsonl"
    command = [sys.executable, "-m", "demo"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "LOCAL_AWS_CALLS": str(record)}, check=True)
    for file in [record, *sorted(RECORDED.glob("*.jsonl"))]:
        calls = [call for call in recorded_calls(file, stack) if is_of_the_deployment(call)]
        assert {call.principal for call in calls} == set(PRINCIPALS), file
        assert denied(simulator, policies if file == record else policies_with_hold, calls) == [], file
