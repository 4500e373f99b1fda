"""Releases of EMR and what they offer."""

import pyspark

from local_aws.emr.catalogue import instance_type_details, instance_types, release_labels
from local_aws.emr.checks import check_release_label
from local_aws.emr.errors import InvalidMarker
from local_aws.emr.model import Wire
from local_aws.emr.operations import operation
from local_aws.emr.operations.paging import page
from local_aws.emr.service import Emr

DEFAULT_LABELS = 100


@operation("ListReleaseLabels")
def list_release_labels(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The release labels of a region, newest first; by prefix."""
    filters = parameters.get("Filters", {})
    # Every release has Spark, and Spark is all that runs here.
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
    """What runs here, whatever the release: one Spark."""
    label = parameters.get("ReleaseLabel") or next(iter(release_labels(region)), None)
    check_release_label(label, region)
    return {"ReleaseLabel": label, "Applications": [{"Name": "Spark", "Version": pyspark.__version__}]}


@operation("ListSupportedInstanceTypes")
def list_supported_instance_types(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The instance types of a release."""
    check_release_label(parameters["ReleaseLabel"], region)
    details = instance_type_details()
    known = [{"Id": name, **details[name]} for name in instance_types(parameters["ReleaseLabel"]) if name in details]
    listed, more = page(known, parameters.get("Marker"), lambda _: True)
    return {"SupportedInstanceTypes": [{k: v for k, v in item.items() if k != "Id"} for item in listed], **more}
