"""Name service-linked roles as on AWS. moto names that of EC2 for Spot AWSServiceRoleForspot."""

from moto.iam.models import SERVICE_NAME_CONVERSION


def name_linked_roles() -> None:
    """Make CreateServiceLinkedRole create AWSServiceRoleForEC2Spot and AWSServiceRoleForEMRCleanup.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/service-linked-roles-spot-instance-requests.html,
    https://docs.aws.amazon.com/emr/latest/ManagementGuide/using-service-linked-roles-cleanup.html
    """
    SERVICE_NAME_CONVERSION["spot"] = "EC2Spot"
    SERVICE_NAME_CONVERSION["elasticmapreduce"] = "EMRCleanup"
