"""Describe and list the EMR releases and their instance types."""

from importlib.metadata import version

from local_aws.emr.checks import check_release_label
from local_aws.emr.errors import InvalidMarker
from local_aws.emr.model import Wire
from local_aws.emr.offerings import instance_type_details, instance_types, release_labels
from local_aws.emr.operations import operation
from local_aws.emr.operations.paging import page
from local_aws.emr.service import Emr

DEFAULT_LABELS = 100


@operation("ListReleaseLabels")
def list_release_labels(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the release labels of a region, newest first, filtered by prefix and application."""
    filters = parameters.get("Filters", {})
    # Every release has Spark, and local_aws runs nothing else.
    application = filters.get("Application", "spark").partition("@")[0].lower()
    labels = [
        label
        for label in release_labels(region)
        if label.startswith(filters.get("Prefix", "")) and application == "spark"
    ]
    token = parameters.get("NextToken")
    if token is not None and token not in labels:
        raise InvalidMarker(token)
    start = 0 if token is None else labels.index(token) + 1
    end = start + parameters.get("MaxResults", DEFAULT_LABELS)
    return {"ReleaseLabels": labels[start:end], **({"NextToken": labels[end - 1]} if end < len(labels) else {})}


@operation("DescribeReleaseLabel")
def describe_release_label(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Describe a release. The only application of every release is the installed Spark."""
    label = parameters.get("ReleaseLabel") or next(iter(release_labels(region)), None)
    check_release_label(label, region)
    return {"ReleaseLabel": label, "Applications": [{"Name": "Spark", "Version": version("pyspark")}]}


@operation("ListSupportedInstanceTypes")
def list_supported_instance_types(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the instance types of a release."""
    check_release_label(parameters["ReleaseLabel"], region)
    details = instance_type_details()
    types = [{"Id": name, **details[name]} for name in instance_types(parameters["ReleaseLabel"]) if name in details]
    listed, marker = page(types, parameters.get("Marker"), lambda _: True)
    return {"SupportedInstanceTypes": [{k: v for k, v in item.items() if k != "Id"} for item in listed], **marker}
