"""The template, and what the local AWS makes of it."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

import cfnlint
import pytest
from cfnlint.api import lint

from infra.stack import TEMPLATE, settings
from local_aws.cloudformation.template import Scope, read_template
from local_aws.server import LocalAws
from orchard.settings import Settings
from tests.infra.deployed_stack import ACCOUNT, EVERYTHING, KEY, READ, Deployed, client, create_stack, policy_document

REGION = "eu-west-1"
TEXT = TEMPLATE.read_text()
# The limits of IAM, without white space: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
MANAGED_POLICY_CHARACTERS, ROLE_POLICIES_CHARACTERS = 6144, 10240
TEMPLATE_BYTES = 51_200


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        yield server.endpoint_url


@pytest.fixture(scope="module")
def stack(url: str) -> Deployed:
    """The stack with everything that the parameters can switch on."""
    client("iam", url).create_role(RoleName=EVERYTHING["AirflowRoleName"], AssumeRolePolicyDocument="{}")
    return create_stack(url, "fruits-stack", **EVERYTHING)


def expected(stack: Deployed, parameters: dict[str, str]) -> dict[str, tuple[str, Any]]:
    """Return the type and the properties of each resource, as the template sets them."""
    template = read_template(TEXT)
    ids = stack.ids
    lists = ("OtherDatasetBuckets", "OtherDatasetObjects")
    defaults = {name: str(rules["Default"]) for name, rules in template["Parameters"].items()}
    given = {**defaults, **parameters}
    values = {key: value.split(",") if key in lists else value for key, value in given.items()}
    pseudo = {"AccountId": ACCOUNT, "Region": REGION, "StackName": stack.name, "Partition": "aws"}
    scope = Scope(template, {**values, **{f"AWS::{key}": value for key, value in pseudo.items()}}, lambda: ZONES, ids)
    roles = {name: f"arn:aws:iam::{ACCOUNT}:role/{ids[name]}" for name in ("NodeRole", "ServiceRole")}
    arns = {
        **roles,
        "Bucket": f"arn:aws:s3:::{ids['Bucket']}",
        "InstanceProfile": f"arn:aws:iam::{ACCOUNT}:instance-profile/{ids['InstanceProfile']}",
    }
    scope.attributes = {name: {"Arn": arns.get(name, ""), "GroupId": id_} for name, id_ in ids.items()}
    definitions = template["Resources"]
    return {
        name: (definitions[name]["Type"], scope.resolve(definitions[name]["Properties"]))
        for name in definitions
        if scope.holds(definitions[name].get("Condition"))
    }


ZONES = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]


def test_cfn_lint_finds_nothing() -> None:
    assert lint(TEXT, regions=[REGION, "us-east-1"]) == []


def test_cloudformation_accepts_the_size_of_the_template() -> None:
    assert len(TEXT.encode()) <= TEMPLATE_BYTES


def test_every_property_that_the_template_sets_is_set(stack: Deployed) -> None:
    wanted = expected(stack, EVERYTHING)
    assert stack.ids.keys() == wanted.keys() == read_template(TEXT)["Resources"].keys()
    found = {name: (kind, READ[kind](stack, stack.ids[name])) for name, (kind, _) in wanted.items()}
    for name, (_, properties) in found.items():
        for key, value in properties.items():
            if isinstance(value, list) and value and isinstance(value[0], dict) and "Key" in value[0]:
                value.sort(key=lambda tag: [item["Key"] for item in wanted[name][1][key]].index(tag["Key"]))
    budget = wanted["Budget"][1]["Budget"]["BudgetLimit"]
    budget["Amount"] = str(budget["Amount"])
    for name, (kind, properties) in wanted.items():
        assert found[name][1] == properties, f"{name} {kind}"


def test_the_defaults_create_neither_a_network_nor_a_subscription(url: str) -> None:
    deployed = create_stack(url, "defaults", DatabaseName="defaults", DeploymentName="defaults")
    network = {name for name, rules in read_template(TEXT)["Resources"].items() if "Vpc" in rules.get("Condition", "")}
    assert len(network) == 16
    assert read_template(TEXT)["Resources"].keys() - deployed.ids.keys() == network | {"AlertSubscription"}
    document = json.dumps(policy_document(deployed, deployed.ids["AirflowDataPolicy"]))
    assert "pears" not in document
    assert "kms" not in document


def test_without_a_budget_there_is_none(url: str) -> None:
    deployed = create_stack(url, "free", DatabaseName="free", DeploymentName="free", MonthlyBudgetUsd="0")
    assert "Budget" not in deployed.ids


def test_the_outputs_are_settings_of_orchard(stack: Deployed) -> None:
    (described,) = stack.client("cloudformation").describe_stacks(StackName=stack.name)["Stacks"]
    found = settings(described)
    read = Settings.from_env({**found, "ORCHARD_RELEASE": "0123456789ab"})
    assert (read.bucket, read.deployment) == (stack.ids["Bucket"], "orchard")
    assert read.subnet_ids == (stack.ids["FirstSubnet"], stack.ids["SecondSubnet"])
    descriptions = {output["Description"] for output in described["Outputs"]}
    assert set(found) <= descriptions, "the description of an output is the name of the setting"


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def documents(stack: Deployed) -> dict[str, Any]:
    """Return the documents of all policies of the stack for principals, by the id of the resource and the policy."""
    iam, found = stack.client("iam"), {}
    for name in ("AirflowDataPolicy", "AirflowClusterPolicy"):
        found[name] = policy_document(stack, stack.ids[name])
    for name in ("ServiceRole", "NodeRole"):
        role = stack.ids[name]
        for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
            found[f"{name} {policy}"] = document
    return found


def test_the_policies_fit_the_limits_of_iam(stack: Deployed) -> None:
    size = {name: len(json.dumps(document, separators=(",", ":"))) for name, document in documents(stack).items()}
    managed = {name: size[name] for name in ("AirflowDataPolicy", "AirflowClusterPolicy")}
    assert max(managed.values()) <= MANAGED_POLICY_CHARACTERS, managed
    assert sum(size.values()) - sum(managed.values()) <= ROLE_POLICIES_CHARACTERS


def test_no_policy_allows_all_actions_of_a_service_or_everything_where_the_service_knows_resources(
    stack: Deployed,
) -> None:
    """cfn-lint has the actions of each service, with the types of resources that they support."""
    services = json.loads(resources.files(cfnlint).joinpath("data/AdditionalSpecs/Policies.json").read_text())
    for name, document in documents(stack).items():
        for statement in document["Statement"]:
            for action in as_list(statement["Action"]):
                service, _, operation = action.partition(":")
                assert operation.replace("*", ""), f"{name} allows {action}"
                known = services[service]["Actions"]
                matching = [known[key] for key in known if fnmatchcase(key, operation.lower())]
                assert matching, f"{name}: {action} does not exist"
                if "*" in as_list(statement["Resource"]):
                    assert not any(rules.get("Resources") for rules in matching), f"{name}: {action} supports resources"


def test_nodes_may_not_write_releases(stack: Deployed) -> None:
    """Code that breaks out of the decoder on a node must not get onto the next cluster."""
    writes = [
        resource
        for name, document in documents(stack).items()
        if name.startswith("NodeRole")
        for statement in document["Statement"]
        if any("Put" in action or "Delete" in action for action in as_list(statement["Action"]))
        for resource in as_list(statement["Resource"])
    ]
    folders = {resource.removeprefix(f"arn:aws:s3:::{stack.ids['Bucket']}/") for resource in writes}
    # The stack has HoldClusters.
    assert folders == {"runs/*", "scratch/*", "warehouse/*", "logs/*", "notebooks/*"}


INTERFACES = {"KmsEndpoint", "SsmEndpoint", "SsmMessagesEndpoint", "Ec2MessagesEndpoint"}


@pytest.mark.parametrize(
    ("number", "parameters", "interfaces"),
    [
        (0, {}, set()),
        (1, {"HoldClusters": "true"}, {"SsmEndpoint", "SsmMessagesEndpoint", "Ec2MessagesEndpoint"}),
        (2, {"KmsKeyArn": KEY}, {"KmsEndpoint"}),
    ],
)
def test_a_private_network_has_the_interface_endpoints_that_are_needed(
    url: str, number: int, parameters: dict[str, str], interfaces: set[str]
) -> None:
    name = f"network-{number}"
    names = {"DatabaseName": f"network_{number}", "DeploymentName": name, "BucketName": name}
    ids = create_stack(url, name, CreateVpc="true", **names, **parameters).ids
    assert INTERFACES & ids.keys() == interfaces
    assert ("EndpointSecurityGroup" in ids) == bool(interfaces)


def test_clusters_cannot_be_held_by_default(url: str) -> None:
    deployed = create_stack(url, "not-held", DatabaseName="not_held", DeploymentName="not-held")
    found = json.dumps(documents(deployed))
    assert "notebooks" not in found
    assert "ssm" not in found
    configuration = deployed.client("emr").describe_security_configuration(Name=deployed.ids["SecurityConfiguration"])
    metadata = json.loads(configuration["SecurityConfiguration"])["InstanceMetadataServiceConfiguration"]
    assert metadata["HttpPutResponseHopLimit"] == 1
