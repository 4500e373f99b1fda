import json

import boto3

from tests.local_aws.user import User, refusal


def test_a_security_configuration_is_created_described_and_deleted(user: User) -> None:
    text = json.dumps({"EncryptionConfiguration": {"EnableInTransitEncryption": False}})
    user.emr.create_security_configuration(Name="shown", SecurityConfiguration=text)
    assert user.emr.describe_security_configuration(Name="shown")["SecurityConfiguration"] == text
    assert "shown" in [item["Name"] for item in user.emr.list_security_configurations()["SecurityConfigurations"]]
    error = refusal(user.emr.create_security_configuration, Name="shown", SecurityConfiguration=text)
    assert error == ("InvalidRequestException", "SecurityConfiguration with name 'shown' already exists.")
    user.emr.delete_security_configuration(Name="shown")
    for call in (user.emr.describe_security_configuration, user.emr.delete_security_configuration):
        error = refusal(call, Name="shown")
        assert error == ("InvalidRequestException", "Security configuration with name 'shown' does not exist.")
    assert (
        refusal(user.emr.create_security_configuration, Name="x", SecurityConfiguration="{")[0] == "ValidationException"
    )


def test_block_public_access_settings_are_stored_by_region(user: User) -> None:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name="us-west-2")
    elsewhere = session.client("emr", endpoint_url=user.endpoint_url)
    ports = [{"MinRange": 22, "MaxRange": 22}]
    for client in (user.emr, elsewhere):
        block = client.get_block_public_access_configuration()["BlockPublicAccessConfiguration"]
        assert (block["BlockPublicSecurityGroupRules"], block["PermittedPublicSecurityGroupRuleRanges"]) == (
            True,
            ports,
        )
    elsewhere.put_block_public_access_configuration(
        BlockPublicAccessConfiguration={"BlockPublicSecurityGroupRules": False}
    )
    answers = [client.get_block_public_access_configuration() for client in (user.emr, elsewhere)]
    assert [answer["BlockPublicAccessConfiguration"]["BlockPublicSecurityGroupRules"] for answer in answers] == [
        True,
        False,
    ]
