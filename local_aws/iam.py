"""Name EC2's service-linked role for Spot as on AWS. moto names it AWSServiceRoleForspot."""

from moto.iam.models import SERVICE_NAME_CONVERSION


def name_spot_role() -> None:
    """Make CreateServiceLinkedRole for spot.amazonaws.com create AWSServiceRoleForEC2Spot.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/service-linked-roles-spot-instance-requests.html
    """
    SERVICE_NAME_CONVERSION["spot"] = "EC2Spot"
