"""Store and return security configurations and the block public access settings, by region."""

import json
from datetime import datetime

from moto.core import DEFAULT_ACCOUNT_ID

from local_aws.emr.errors import EmrError, NoSuchSecurityConfiguration, ValidationFailed
from local_aws.emr.model import Wire, now
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr

CREATED_BY = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:root"
STARTED = now()
# The default of EMR: block everything except SSH.
DEFAULT_BLOCK: Wire = {
    "BlockPublicSecurityGroupRules": True,
    "PermittedPublicSecurityGroupRuleRanges": [{"MinRange": 22, "MaxRange": 22}],
}


@operation("CreateSecurityConfiguration")
def create_security_configuration(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Create a security configuration; its name must be new and its text must be JSON."""
    name, text = parameters["Name"], parameters["SecurityConfiguration"]
    try:
        json.loads(text)
    except ValueError as error:
        raise ValidationFailed(f"Security configuration '{name}' is not JSON: {error}") from error
    configuration = {"Name": name, "SecurityConfiguration": text, "CreationDateTime": now()}
    if emr.security_configurations.setdefault((region, name), configuration) is not configuration:
        raise EmrError(f"SecurityConfiguration with name '{name}' already exists.")
    emr.save_account()
    return {"Name": name, "CreationDateTime": configuration["CreationDateTime"]}


@operation("DescribeSecurityConfiguration")
def describe_security_configuration(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Describe a security configuration."""
    key = (region, parameters["Name"])
    if key not in emr.security_configurations:
        raise NoSuchSecurityConfiguration(parameters["Name"])
    return emr.security_configurations[key]


@operation("ListSecurityConfigurations")
def list_security_configurations(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the names of all security configurations of a region, newest first."""
    stored = list(emr.security_configurations.items())
    listed = [configuration for (its_region, _), configuration in reversed(stored) if its_region == region]
    return {"SecurityConfigurations": [{key: item[key] for key in ("Name", "CreationDateTime")} for item in listed]}


@operation("DeleteSecurityConfiguration")
def delete_security_configuration(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Delete a security configuration."""
    if emr.security_configurations.pop((region, parameters["Name"]), None) is None:
        raise NoSuchSecurityConfiguration(parameters["Name"])
    emr.save_account()
    return {}


@operation("GetBlockPublicAccessConfiguration")
def get_block_public_access_configuration(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Return the block public access settings of a region."""
    return emr.block_public_access.get(region, _block(DEFAULT_BLOCK, STARTED))


@operation("PutBlockPublicAccessConfiguration")
def put_block_public_access_configuration(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set the block public access settings of a region."""
    emr.block_public_access[region] = _block(parameters["BlockPublicAccessConfiguration"], now())
    emr.save_account()
    return {}


def _block(configuration: Wire, created: datetime) -> Wire:
    return {
        "BlockPublicAccessConfiguration": configuration,
        "BlockPublicAccessConfigurationMetadata": {"CreationDateTime": created, "CreatedByArn": CREATED_BY},
    }
