from typing import Any

import pyspark

from tests.local_aws.user import User, refusal


def test_release_labels_are_listed_by_page_and_prefix(user: User) -> None:
    first = user.emr.list_release_labels(MaxResults=2, Filters={"Prefix": "emr-7"})
    assert first["ReleaseLabels"] == ["emr-7.14.0", "emr-7.13.0"]
    second = user.emr.list_release_labels(MaxResults=2, Filters={"Prefix": "emr-7"}, NextToken=first["NextToken"])
    assert second["ReleaseLabels"] == ["emr-7.12.0", "emr-7.11.0"]
    assert "NextToken" not in user.emr.list_release_labels(Filters={"Prefix": "emr-7"})
    assert refusal(user.emr.list_release_labels, NextToken="x")[0] == "InvalidRequestException"


def test_a_described_release_has_the_installed_spark(user: User) -> None:
    applications = user.emr.describe_release_label(ReleaseLabel="emr-7.14.0")["Applications"]
    assert applications == [{"Name": "Spark", "Version": pyspark.__version__}]
    assert refusal(user.emr.describe_release_label, ReleaseLabel="emr-0")[0] == "ValidationException"


def test_the_instance_types_of_a_release_are_listed_in_pages(user: User) -> None:
    pages = 0
    marker: dict[str, str] = {}
    types: dict[str, Any] = {}
    while pages == 0 or marker:
        answer = user.emr.list_supported_instance_types(ReleaseLabel="emr-7.14.0", **marker)
        types |= {kind["Type"]: kind for kind in answer["SupportedInstanceTypes"]}
        marker = {"Marker": answer["Marker"]} if "Marker" in answer else {}
        pages += 1
    assert pages == -(-len(types) // 50) > 1
    assert (types["m5.xlarge"]["VCPU"], types["m5.xlarge"]["MemoryGB"]) == (4, 16.0)
