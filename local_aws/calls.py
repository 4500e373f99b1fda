"""Record each call as IAM sees it: who called which action on which resources, with which condition keys.

The record shows which permissions a program needs. Calls are recorded once, however often they are repeated, and also
if they fail. The principal is the access key: give each program its own.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote
from wsgiref.types import WSGIEnvironment
from xml.etree import ElementTree

from moto.core import DEFAULT_ACCOUNT_ID

from local_aws.emr.service import Emr
from local_aws.moto_state import bucket_and_key, operation_of, read_body
from local_aws.policies import find_instance_profile, find_role
from local_aws.signature import region_of, service_of

_KEY: Final = re.compile(r"Credential=([^/]+)/")
# S3's operations on an object and on a bucket, by method and subresource, with the actions that they need:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
_OBJECT: Final[Mapping[tuple[str, str], str]] = {
    ("GET", ""): "GetObject",
    ("HEAD", ""): "GetObject",
    ("GET", "uploadId"): "ListMultipartUploadParts",
    ("GET", "attributes"): "GetObjectAttributes",
    ("PUT", ""): "PutObject",
    ("PUT", "uploadId"): "PutObject",
    ("POST", "uploads"): "PutObject",
    ("POST", "uploadId"): "PutObject",
    ("DELETE", ""): "DeleteObject",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "versionId"): "GetObjectVersion",
    ("DELETE", "versionId"): "DeleteObjectVersion",
}
_BUCKET: Final[Mapping[tuple[str, str], str]] = {
    ("GET", ""): "ListBucket",
    ("GET", "list-type"): "ListBucket",
    ("HEAD", ""): "ListBucket",
    ("GET", "location"): "GetBucketLocation",
    ("GET", "versions"): "ListBucketVersions",
    ("GET", "uploads"): "ListBucketMultipartUploads",
    ("PUT", ""): "CreateBucket",
    ("DELETE", ""): "DeleteBucket",
}
# The parameters of Glue's operations that name what they work on.
_ALL_TABLES: Final = ("GetTables",)


@dataclass(frozen=True)
class Call:
    """A call. `context` holds condition keys, as `aws:RequestTag/orchard:deployment`."""

    principal: str
    action: str
    resources: Sequence[str]
    context: Mapping[str, str] = field(default_factory=dict)


class CallLog:
    """Appends calls to a file, one JSON object per line."""

    def __init__(self, file: Path, emr: Emr) -> None:
        self._file, self._emr = file, emr
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        file.parent.mkdir(parents=True, exist_ok=True)

    def record(self, environ: WSGIEnvironment) -> None:
        """Record the calls of a request, before it is carried out."""
        is_upload = service_of(environ) in (None, "s3") and environ["REQUEST_METHOD"] != "POST"
        body = b"" if is_upload else read_body(environ)
        for call in calls_of(environ, body, self._emr):
            line = json.dumps(asdict(call), sort_keys=True)
            with self._lock:
                if line not in self._seen:
                    self._seen.add(line)
                    with self._file.open("a") as stream:
                        stream.write(line + "\n")


def calls_of(environ: WSGIEnvironment, body: bytes, emr: Emr) -> list[Call]:
    """Return the calls of a request. Requests without a signature, and those that need no permission, have none."""
    service, found = service_of(environ), _KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
    if service is None or found is None:
        return []
    principal, region = found[1], region_of(environ)
    if service == "s3":
        return list(_s3_calls(principal, environ, body))
    operation = operation_of(environ, body)
    if operation is None or service == "sts":  # everybody may call GetCallerIdentity
        return []
    if service == "elasticmapreduce":
        return list(_emr_calls(principal, region, operation, json.loads(body or b"{}"), emr))
    if service == "glue":
        return [Call(principal, f"glue:{operation}", _glue_resources(region, operation, json.loads(body or b"{}")))]
    form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
    return [Call(principal, f"{service}:{operation}", [_resource(service, form)])]


def _s3_calls(principal: str, environ: WSGIEnvironment, body: bytes) -> Iterator[Call]:
    bucket, key = bucket_and_key(environ)
    if not bucket:
        yield Call(principal, "s3:ListAllMyBuckets", ["*"])
        return
    method, query = environ["REQUEST_METHOD"], parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    table = _OBJECT if key else _BUCKET
    part = next((name for name in query if (method, name) in table), "")
    arn = f"arn:aws:s3:::{bucket}"
    if not key and method == "POST" and "delete" in query:
        for element in ElementTree.fromstring(body).iter():  # noqa: S314  # of this machine
            if element.tag.endswith("Key"):
                yield Call(principal, "s3:DeleteObject", [f"{arn}/{element.text}"])
        return
    action = table.get((method, part), f"{method} {part}")
    context = {"s3:prefix": query["prefix"][0]} if action == "ListBucket" and "prefix" in query else {}
    yield Call(principal, f"s3:{action}", [f"{arn}/{key}" if key else arn], context)
    if source := environ.get("HTTP_X_AMZ_COPY_SOURCE"):
        name = unquote(source).partition("?")[0].removeprefix("/")
        yield Call(principal, "s3:GetObject", [f"arn:aws:s3:::{name}"])


def _emr_calls(principal: str, region: str, operation: str, parameters: Mapping[str, Any], emr: Emr) -> Iterator[Call]:
    action = f"elasticmapreduce:{operation}"
    clusters = f"arn:aws:elasticmapreduce:{region}:{DEFAULT_ACCOUNT_ID}:cluster/"
    requested = {f"aws:RequestTag/{tag['Key']}": tag.get("Value", "") for tag in parameters.get("Tags", [])}
    if operation == "RunJobFlow":
        yield Call(principal, action, ["*"], requested)
        if requested:
            yield Call(principal, "elasticmapreduce:AddTags", [f"{clusters}j-NEW"], requested)
        passed = {"iam:PassedToService": "elasticmapreduce.amazonaws.com"}
        yield Call(principal, "iam:PassRole", [_role_arn(parameters.get("ServiceRole", ""))], passed)
        for role in _roles_of_profile(parameters.get("JobFlowRole", "")):
            yield Call(principal, "iam:PassRole", [role], {"iam:PassedToService": "ec2.amazonaws.com"})
        return
    ids = [
        *(parameters[name] for name in ("ClusterId", "JobFlowId", "ResourceId") if name in parameters),
        *parameters.get("JobFlowIds", []),
        *(arn.rpartition("/")[2] for name in ("TargetResourceArn",) if (arn := parameters.get(name))),
        *(f"j-{ui.removeprefix('p-')}" for name in ("PersistentAppUIId",) if (ui := parameters.get(name))),
    ]
    for cluster_id in ids:
        control = emr.controls.get(cluster_id)
        own = {f"aws:ResourceTag/{key}": value for key, value in (control.cluster.tags if control else {}).items()}
        yield Call(principal, action, [f"{clusters}{cluster_id}"], {**requested, **own})
    if not ids:
        yield Call(principal, action, ["*"])


def _glue_resources(region: str, operation: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the catalog, the database and the table, all of which Glue checks.

    https://docs.aws.amazon.com/glue/latest/dg/glue-specifying-resource-arns.html
    """
    prefix = f"arn:aws:glue:{region}:{DEFAULT_ACCOUNT_ID}:"
    named = parameters.get("DatabaseInput", {}).get("Name") or parameters.get("Name", "")
    database = parameters.get("DatabaseName") or (named if "Database" in operation else "")
    table = parameters.get("TableInput", {}).get("Name") or (parameters.get("Name", "") if database else "")
    found = [f"{prefix}catalog"]
    if database:
        found.append(f"{prefix}database/{database}")
    if "Table" in operation and (table or operation in _ALL_TABLES):
        found.append(f"{prefix}table/{database}/{table or '*'}")
    return found


def _resource(service: str, form: Mapping[str, str]) -> str:
    if service == "sns":
        return form.get("TopicArn", "*")
    if service == "iam" and "RoleName" in form:
        return _role_arn(form["RoleName"])
    if service == "iam" and "InstanceProfileName" in form:
        return f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:instance-profile/{form['InstanceProfileName']}"
    if service == "iam" and "PolicyArn" in form:
        return form["PolicyArn"]
    return "*"


def _role_arn(name_or_arn: str) -> str:
    role = find_role(name_or_arn)
    return str(role.arn) if role else f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/{name_or_arn.rpartition('/')[2]}"


def _roles_of_profile(name_or_arn: str) -> list[str]:
    profile = find_instance_profile(name_or_arn)
    return [role.arn for role in profile.roles] if profile else []
