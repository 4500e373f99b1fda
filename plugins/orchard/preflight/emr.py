"""Check a RunJobFlow request against what EMR offers. Each check returns one sentence per fault."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.request import requested_instance_types

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

log = logging.getLogger(__name__)

Request = Mapping[str, Any]


def unknown_release_label(emr: "EMRClient", request: Request) -> list[str]:
    """Check that EMR offers the release label."""
    label = request["ReleaseLabel"]
    # One page is enough: a family has about 20 labels, and a page holds up to 100.
    family = f"{label.partition('.')[0]}."
    offered = emr.list_release_labels(Filters={"Prefix": family}).get("ReleaseLabels", [])
    if label not in offered:
        region = emr.meta.region_name
        return [
            f"release label {label!r} is not available in {region}; set ORCHARD_RELEASE_LABEL to one of: "
            f"{', '.join(offered) or f'(no label starts with {family})'}"
        ]
    log.info("preflight: EMR offers the release label %s", label)
    return []


def unsupported_instance_types(emr: "EMRClient", request: Request) -> list[str]:
    """Check that the EMR release supports the instance types."""
    label = request["ReleaseLabel"]
    supported: set[str] = set()
    marker: dict[str, Any] = {}
    while True:
        try:
            page = emr.list_supported_instance_types(ReleaseLabel=label, **marker)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("ValidationException", "InvalidRequestException"):
                raise
            log.info("preflight: instance types skipped: EMR lists none for this release label: %s", error)
            return []
        supported |= {found["Type"] for found in page.get("SupportedInstanceTypes", [])}
        if not page.get("Marker"):
            break
        marker = {"Marker": page["Marker"]}
    requested = requested_instance_types(request)
    faults = [
        f"instance type {kind!r} is not supported by {label}; choose another instance_type"
        for kind in requested
        if kind not in supported
    ]
    if not faults:
        log.info("preflight: %s supports %s", label, ", ".join(requested))
    return faults


def missing_security_configuration(emr: "EMRClient", request: Request) -> list[str]:
    """Check that the security configuration exists, if the request names one."""
    name = request.get("SecurityConfiguration")
    if name is None:
        log.info("preflight: no security configuration is set")
        return []
    try:
        emr.describe_security_configuration(Name=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidRequestException":
            raise
        return [
            f"security configuration {name!r}: {error}; set ORCHARD_SECURITY_CONFIGURATION to one that exists, or "
            "unset it"
        ]
    log.info("preflight: security configuration %s exists", name)
    return []
