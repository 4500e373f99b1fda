import json
import uuid
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.preflight.emr import (
    missing_security_configuration,
    unknown_release_label,
    unsupported_instance_types,
)
from tests.plugins.answers import answering, failing
from tests.plugins.preflight.cluster_requests import cluster_request, with_instance_types

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient


def test_an_unknown_release_label_is_reported_with_the_available_ones(emr: "EMRClient") -> None:
    assert unknown_release_label(emr, cluster_request()) == []
    (fault,) = unknown_release_label(emr, cluster_request(release_label="emr-7.99.0"))
    assert fault.startswith(
        "release label 'emr-7.99.0' is not available in eu-west-1; set ORCHARD_RELEASE_LABEL to one of: emr-7.14.0, "
    )


def test_a_release_label_of_an_unknown_family_is_a_fault(emr: "EMRClient") -> None:
    (fault,) = unknown_release_label(emr, cluster_request(release_label="emr-9.0.0"))
    assert fault.endswith("set ORCHARD_RELEASE_LABEL to one of: (no label starts with emr-9.)")


def test_an_instance_type_that_emr_does_not_support_is_named(emr: "EMRClient") -> None:
    assert unsupported_instance_types(emr, cluster_request()) == []
    assert unsupported_instance_types(emr, with_instance_types(cluster_request(), "m5.xlarge", "t2.nano")) == [
        "instance type 't2.nano' is not supported by emr-7.14.0; choose another instance_type"
    ]


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_emr_supports_every_instance_type_of_orchard(emr: "EMRClient", name: str) -> None:
    assert unsupported_instance_types(emr, with_instance_types(cluster_request(), name)) == []


def test_the_instance_types_of_an_unknown_release_label_are_not_checked_and_the_log_contains_why(
    emr: "EMRClient", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert unsupported_instance_types(emr, cluster_request(release_label="emr-7.99.0")) == []
    assert "preflight: instance types skipped: EMR lists none for this release label" in caplog.text


def test_all_pages_of_the_supported_instance_types_are_read(emr: "EMRClient") -> None:
    first = emr.list_supported_instance_types(ReleaseLabel="emr-7.14.0")
    assert first["Marker"], "there must be more than one page"
    with answering(emr, "ListSupportedInstanceTypes", {"SupportedInstanceTypes": []}):
        assert len(unsupported_instance_types(emr, with_instance_types(cluster_request(), "m5.xlarge"))) == 1
    last = first
    while last.get("Marker"):
        last = emr.list_supported_instance_types(ReleaseLabel="emr-7.14.0", Marker=last["Marker"])
    last_type = last["SupportedInstanceTypes"][-1]["Type"]
    assert unsupported_instance_types(emr, with_instance_types(cluster_request(), last_type)) == []


def test_a_security_configuration_must_exist_if_the_request_names_one(
    emr: "EMRClient", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert missing_security_configuration(emr, cluster_request()) == []
    assert "preflight: no security configuration is set" in caplog.text
    name = f"security-{uuid.uuid4().hex[:8]}"
    (fault,) = missing_security_configuration(emr, cluster_request(security_configuration=name))
    assert fault.startswith(f"security configuration '{name}': ")
    assert fault.endswith("set ORCHARD_SECURITY_CONFIGURATION to one that exists, or unset it")
    emr.create_security_configuration(Name=name, SecurityConfiguration=json.dumps({}))
    assert missing_security_configuration(emr, cluster_request(security_configuration=name)) == []


@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException"])
def test_an_error_that_is_no_answer_to_the_check_is_raised(emr: "EMRClient", code: str) -> None:
    with failing(emr, "DescribeSecurityConfiguration", code), pytest.raises(ClientError, match=code):
        missing_security_configuration(emr, cluster_request(security_configuration="strict"))
    with failing(emr, "ListSupportedInstanceTypes", code), pytest.raises(ClientError, match=code):
        unsupported_instance_types(emr, cluster_request())
