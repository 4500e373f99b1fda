"""List everything that belongs to a deployment, and delete it if it is confirmed.

Without --confirm, this only lists. The bucket is deleted with all versions of its objects: images, tables, releases.
"""

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.stack import StackFailed, events, find_stack, outputs, wait

log = logging.getLogger(__name__)

ACTIVE = ("STARTING", "BOOTSTRAPPING", "RUNNING", "WAITING", "TERMINATING")
DEPLOYMENT_TAG = "orchard:deployment"
# The limit of DeleteObjects.
KEYS_PER_REQUEST = 1000
EXAMPLE = """\
example:
  python -m infra.destroy --stack orchard
  python -m infra.destroy --stack orchard --confirm orchard
"""


class ClustersActive(RuntimeError):
    """Clusters of the deployment are active, so its roles and its bucket are in use."""

    def __init__(self, clusters: list[str]) -> None:
        super().__init__(
            f"nothing was deleted, because {len(clusters)} of its clusters are active: {', '.join(clusters)}. Pause "
            "the DAGs, and wait until the runs have ended, or terminate the clusters with `aws emr terminate-clusters`"
        )


@dataclass(frozen=True)
class Clients:
    """boto3 clients for the region of the stack."""

    cloudformation: Any
    s3: Any
    glue: Any
    iam: Any
    emr: Any

    @classmethod
    def of(cls, session: boto3.Session) -> "Clients":
        """Create the clients."""
        names: Any = ("cloudformation", "s3", "glue", "iam", "emr")
        return cls(*(session.client(name) for name in names))


def versions(s3: Any, bucket: str) -> Iterator[dict[str, Any]]:
    """Yield each version of each object of a bucket, and each delete marker. A missing bucket has none."""
    try:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            yield from page.get("Versions", [])
            yield from page.get("DeleteMarkers", [])
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucket":
            raise


def tables(glue: Any, database: str) -> list[str]:
    """Return the names of the tables of a database. A missing database has none."""
    try:
        pages = glue.get_paginator("get_tables").paginate(DatabaseName=database)
        return [table["Name"] for page in pages for table in page["TableList"]]
    except ClientError as error:
        if error.response["Error"]["Code"] != "EntityNotFoundException":
            raise
        return []


def holders(iam: Any, policy_arn: str) -> list[tuple[str, str]]:
    """Return the kind and the name of each role, user and group that a policy is attached to."""
    found: list[tuple[str, str]] = []
    for page in iam.get_paginator("list_entities_for_policy").paginate(PolicyArn=policy_arn):
        found += [(kind, item[f"{kind}Name"]) for kind in ("Role", "User", "Group") for item in page[f"Policy{kind}s"]]
    return found


def active_clusters(emr: Any, deployment: str) -> list[str]:
    """Return the ids of the active clusters of a deployment."""
    pages = emr.get_paginator("list_clusters").paginate(ClusterStates=list(ACTIVE))
    ids = [cluster["Id"] for page in pages for cluster in page["Clusters"]]
    return [
        cluster_id
        for cluster_id in ids
        for tag in emr.describe_cluster(ClusterId=cluster_id)["Cluster"].get("Tags", [])
        if (tag["Key"], tag["Value"]) == (DEPLOYMENT_TAG, deployment)
    ]


def contents(clients: Clients, stack: dict[str, Any]) -> list[str]:
    """Return a line for everything that `destroy` would delete."""
    values, lines = outputs(stack), []
    bucket, database = values.get("Bucket", ""), values.get("CatalogDatabase", "")
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    if bucket:
        for version in versions(clients.s3, bucket):
            folder, slash, _ = version["Key"].partition("/")
            sizes[folder + slash].append(version.get("Size", 0))
    for folder, found in sorted(sizes.items()):
        lines.append(f"s3://{bucket}/{folder}: {len(found):,} versions of objects, {sum(found) / 1e6:,.1f} MB")
    lines += [f"table {database}.{table}" for table in (tables(clients.glue, database) if database else [])]
    for arn in filter(None, values.get("AirflowPolicyArns", "").split(",")):
        lines += [f"attachment of {arn} to the {kind.lower()} {name}" for kind, name in holders(clients.iam, arn)]
    pages = clients.cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack["StackName"])
    lines += [
        f"{resource['ResourceType']} {resource.get('PhysicalResourceId', resource['LogicalResourceId'])}"
        for page in pages
        for resource in page["StackResourceSummaries"]
    ]
    return [*lines, f"stack {stack['StackName']}"]


def empty_bucket(s3: Any, bucket: str) -> int:
    """Delete all versions of all objects of a bucket, and return their number.

    Raises:
        StackFailed: S3 refused to delete some. The message names the first.
    """
    count = 0
    batch: list[dict[str, str]] = []

    def delete() -> None:
        nonlocal count
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        if errors := answer.get("Errors", []):
            first = errors[0]
            raise StackFailed(
                f"{len(errors)} objects of s3://{bucket} could not be deleted, the first is {first['Key']}: "
                f"{first['Code']} {first.get('Message', '')}. Run the command again"
            )
        count += len(batch)
        batch.clear()
        log.info("s3://%s: %d versions of objects deleted", bucket, count)

    for version in versions(s3, bucket):
        batch.append({"Key": version["Key"], "VersionId": version["VersionId"]})
        if len(batch) == KEYS_PER_REQUEST:
            delete()
    if batch:
        delete()
    return count


def destroy(clients: Clients, stack: dict[str, Any]) -> None:
    """Delete a deployment: its tables and objects first, then the stack, and last the bucket and the database.

    It can be run again after a failure.

    Raises:
        ClustersActive: clusters of the deployment are active. Nothing was deleted.
        StackFailed: the stack or an object could not be deleted.
    """
    values = outputs(stack)
    bucket, database = values.get("Bucket", ""), values.get("CatalogDatabase", "")
    if active := active_clusters(clients.emr, values.get("Deployment", "")):
        raise ClustersActive(active)
    for table in tables(clients.glue, database) if database else []:
        clients.glue.delete_table(DatabaseName=database, Name=table)
        log.info("table %s.%s deleted", database, table)
    if bucket:
        empty_bucket(clients.s3, bucket)
    for arn in filter(None, values.get("AirflowPolicyArns", "").split(",")):
        for kind, name in holders(clients.iam, arn):
            detach = getattr(clients.iam, f"detach_{kind.lower()}_policy")
            detach(**{f"{kind}Name": name, "PolicyArn": arn})
    seen = {event["EventId"] for event in events(clients.cloudformation, stack["StackId"])}
    clients.cloudformation.delete_stack(StackName=stack["StackName"])
    wait(clients.cloudformation, stack["StackId"], seen, ("DELETE_COMPLETE",))
    if bucket:
        empty_bucket(clients.s3, bucket)  # EMR may have written logs in the meantime
        _delete(lambda: clients.s3.delete_bucket(Bucket=bucket), "NoSuchBucket")
    if database:
        _delete(lambda: clients.glue.delete_database(Name=database), "EntityNotFoundException")


def _delete(call: Any, missing: str) -> None:
    """Delete something that may be gone already."""
    try:
        call()
    except ClientError as error:
        if error.response["Error"]["Code"] != missing:
            raise


def main(argv: list[str] | None = None) -> None:
    """List what would be deleted and, if confirmed, delete it."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.destroy",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stack", required=True, help="name of the stack")
    parser.add_argument("--region", default="eu-west-1", help="region of the stack (default: %(default)s)")
    parser.add_argument("--confirm", default="", help="name of the stack again, to delete everything that is listed")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    name = arguments.stack
    if arguments.confirm not in ("", name):
        parser.error(f"--confirm is {arguments.confirm!r}, but the stack is {name!r}: nothing was deleted")
    try:
        clients = Clients.of(boto3.Session(region_name=arguments.region))
        stack = find_stack(clients.cloudformation, name)
        if stack is None:
            sys.exit(f"destroy: stack {name} does not exist in {arguments.region}")
        sys.stdout.write("\n".join(contents(clients, stack)) + "\n")
        sys.stdout.flush()
        if not arguments.confirm:
            sys.stderr.write(
                f"\nNothing was deleted. To delete all of it, run `make destroy STACK={name} CONFIRM={name}`.\n"
            )
            return
        destroy(clients, stack)
    except (StackFailed, ClustersActive, ClientError, BotoCoreError) as error:
        sys.exit(f"destroy: {error}")
    log.info("stack %s and everything that is listed are deleted", name)


if __name__ == "__main__":
    main()
