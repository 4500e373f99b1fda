"""Create or update the stack of a deployment in an AWS account, and print the settings for Airflow.

The stack is infra/stack.yaml, and docs/deploy.md explains its parameters. A parameter that is not given keeps its
value, or has its default.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.certificate import certificate_zip
from infra.stack import TEMPLATE, StackFailed, events, find_stack, outputs, settings, wait

log = logging.getLogger(__name__)

NO_UPDATES = "No updates are to be performed"
CERTIFICATE_KEY = "certificates/nodes.zip"
# EC2 uses the first for Spot instances. EMR uses the second to delete what terminated clusters have left:
# https://docs.aws.amazon.com/emr/latest/ManagementGuide/using-service-linked-roles-cleanup.html
LINKED_ROLES = {
    "AWSServiceRoleForEC2Spot": "spot.amazonaws.com",
    "AWSServiceRoleForEMRCleanup": "elasticmapreduce.amazonaws.com",
}
EXAMPLE = """\
example:
  python -m infra.deploy --stack orchard
  python -m infra.deploy --stack orchard --datasets s3://pears/2026/ --parameters CreateVpc=true MonthlyBudgetUsd=50
"""


def dataset_parameters(uris: Sequence[str]) -> dict[str, str]:
    """Return the parameters of the stack for datasets in other buckets.

    >>> dataset_parameters(["s3://pears/2026/"])
    {'OtherDatasetBuckets': 'arn:aws:s3:::pears', 'OtherDatasetObjects': 'arn:aws:s3:::pears/2026/*'}

    Raises:
        ValueError: a text is not the URI of a folder.
    """
    buckets, objects = [], []
    for uri in uris:
        found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/((?:[^,*?]*/)?)", uri)
        if found is None:
            raise ValueError(f"dataset {uri!r} is not a folder on S3: use a URI such as s3://pears/2026/")
        buckets.append(f"arn:aws:s3:::{found[1]}")
        objects.append(f"arn:aws:s3:::{found[1]}/{found[2]}*")
    return {"OtherDatasetBuckets": ",".join(dict.fromkeys(buckets)), "OtherDatasetObjects": ",".join(objects)}


def given_parameters(texts: Sequence[str]) -> dict[str, str]:
    """Return parameters that are given as Name=value.

    Raises:
        ValueError: a text is not Name=value.
    """
    for text in texts:
        if not re.match(r"\w+=", text):
            raise ValueError(f"parameter {text!r} has no value: use Name=value, such as CreateVpc=true")
    return dict(text.split("=", 1) for text in texts)


def deploy(cloudformation: Any, name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Create or update a stack, wait until it is complete, and return its description. The log has a line per change.

    Raises:
        ValueError: the template has no parameter of a given name.
        StackFailed: the stack could not be created or updated. It was rolled back.
    """
    body = TEMPLATE.read_text()
    known = {item["ParameterKey"] for item in cloudformation.validate_template(TemplateBody=body)["Parameters"]}
    if unknown := sorted(parameters.keys() - known):
        raise ValueError(f"the stack has no parameter {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    before = find_stack(cloudformation, name)
    if before is not None and before["StackStatus"] in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED"):
        raise StackFailed(
            f"stack {name} is in {before['StackStatus']}, and cannot be updated: delete it with "
            f"`make destroy STACK={name}`, and deploy it again"
        )
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    request = {"StackName": name, "TemplateBody": body, "Capabilities": ["CAPABILITY_IAM"]}
    seen = {event["EventId"] for event in events(cloudformation, name)} if before else set()
    if before is None:
        stack_id = cloudformation.create_stack(**request, Parameters=given, EnableTerminationProtection=False)[
            "StackId"
        ]
    else:
        kept = {item["ParameterKey"] for item in before.get("Parameters", [])} & known - parameters.keys()
        previous = [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]
        stack_id = before["StackId"]
        try:
            cloudformation.update_stack(**request, Parameters=[*given, *previous])
        except ClientError as error:
            if NO_UPDATES not in str(error):
                raise
            log.info("stack %s is up to date", name)
            return before
    return wait(cloudformation, stack_id, seen, ("CREATE_COMPLETE", "UPDATE_COMPLETE"))


def upload_certificate(s3: Any, bucket: str, region: str) -> bool:
    """Upload a certificate for the nodes unless the bucket has one, and return whether it was uploaded."""
    try:
        s3.head_object(Bucket=bucket, Key=CERTIFICATE_KEY)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
    else:
        return False
    s3.put_object(Bucket=bucket, Key=CERTIFICATE_KEY, Body=certificate_zip(region))
    log.info("certificate for the nodes uploaded to s3://%s/%s", bucket, CERTIFICATE_KEY)
    return True


def create_linked_roles(iam: Any) -> list[str]:
    """Create the service-linked roles that EMR needs and the account does not have, and return their names.

    Each exists once per account. AmazonEMRServicePolicy_v2 does not allow EMR to create them.
    """
    created = []
    for role, service in LINKED_ROLES.items():
        try:
            iam.get_role(RoleName=role)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchEntity":
                raise
            iam.create_service_linked_role(AWSServiceName=service)
            log.info("service-linked role %s created", role)
            created.append(role)
    return created


def main(argv: list[str] | None = None) -> None:
    """Deploy, and print the settings to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.deploy",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stack", required=True, help="name of the stack")
    parser.add_argument("--region", default="eu-west-1", help="region of the stack (default: %(default)s)")
    parser.add_argument("--datasets", nargs="*", default=[], help="URIs of datasets in other buckets: s3://pears/2026/")
    parser.add_argument("--parameters", nargs="*", default=[], help="parameters of the stack: Name=value")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    session = boto3.Session(region_name=arguments.region)
    try:
        parameters = given_parameters(arguments.parameters)
        if arguments.datasets:
            parameters |= dataset_parameters(arguments.datasets)
        stack = deploy(session.client("cloudformation"), arguments.stack, parameters)
        bucket = outputs(stack)["Bucket"]
        upload_certificate(session.client("s3"), bucket, arguments.region)
        create_linked_roles(session.client("iam"))
    except (ValueError, StackFailed, ClientError, BotoCoreError) as error:
        sys.exit(f"deploy: {error}")
    for name, value in settings(stack).items():
        sys.stdout.write(f"{name}={value}\n")
    sys.stdout.flush()
    policies = outputs(stack)["AirflowPolicyArns"].split(",")
    sys.stderr.write(
        "\nNext:\n"
        f"- Set these variables for Airflow, and attach its role to: {' and '.join(policies)}\n"
        f"- Run `make release BUCKET={bucket}`, and set the ORCHARD_RELEASE that it prints.\n"
        "- Activate the cost allocation tag orchard:deployment in the billing console, for the budget.\n"
    )


if __name__ == "__main__":
    main()
