"""The errors of EMR, one class per error."""


class EmrError(Exception):
    """An error response; `code` is what boto3 shows as Error.Code, `status` is the HTTP status."""

    code = "InvalidRequestException"
    status = 400


class ValidationFailed(EmrError):
    """A request whose content EMR rejects."""

    code = "ValidationException"


class Throttled(EmrError):
    """EMR's response to a request above the rate that it allows."""

    code = "ThrottlingException"

    def __init__(self) -> None:
        super().__init__("Rate exceeded")


class NoSuchCluster(EmrError):
    """EMR's response to an unknown cluster id."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(f"Cluster id '{cluster_id}' is not valid.")


class NoSuchStep(EmrError):
    """EMR's response to an unknown step id."""

    def __init__(self, step_id: str) -> None:
        super().__init__(f"Step id '{step_id}' is not valid.")


class TooManyStepIds(EmrError):
    """A ListSteps request with more ids than EMR accepts."""

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"ListSteps accepts at most {limit} step ids, not {count}.")


class NoSuchPool(EmrError):
    """EMR's response to an unknown id of an instance group or fleet."""

    def __init__(self, pool_id: str) -> None:
        kind = "Instance fleet" if pool_id.startswith("if-") else "Instance group"
        super().__init__(f"{kind} id '{pool_id}' is not valid.")


class NotAClusterArn(EmrError):
    """A persistent application UI for something that is not a cluster."""

    def __init__(self, arn: str) -> None:
        super().__init__(f"TargetResourceArn '{arn}' is not the ARN of a cluster.")


class NoSuchAppUi(EmrError):
    """EMR's response to an unknown id of a persistent application UI."""

    def __init__(self, app_ui_id: str) -> None:
        super().__init__(f"Persistent application UI id '{app_ui_id}' is not valid.")


class UnsupportedAppUi(EmrError):
    """A persistent application UI that local_aws does not have."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"local_aws has no persistent application UI of type {kind}: use SHS, Spark's history server")


class NoSuchSecurityConfiguration(EmrError):
    """EMR's response to an unknown security configuration."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Security configuration with name '{name}' does not exist.")


class InvalidMarker(EmrError):
    """A marker that does not belong to this list."""

    def __init__(self, marker: str) -> None:
        super().__init__(f"Marker '{marker}' is not valid.")


class WrongCollection(EmrError):
    """An operation on instance groups for a cluster that uses fleets, or the other way round."""

    def __init__(self, operation: str, alternative: str, *, uses_fleets: bool) -> None:
        uses = "instance fleets" if uses_fleets else "instance groups"
        super().__init__(
            "Instance fleets and instance groups are mutually exclusive. The EMR cluster specified in the request uses "
            f"{uses}. The {operation} operation does not support clusters that use {uses}. Use the {alternative} "
            "operation instead."
        )


class ClusterHasEnded(ValidationFailed):
    """A change to a cluster that has ended or is terminating."""

    def __init__(self, cluster_id: str, state: str) -> None:
        super().__init__(
            f"A job flow that is shutting down, terminated, or finished may not be modified: {cluster_id} is {state}"
        )


class TerminationProtected(ValidationFailed):
    """Termination of a cluster that has termination protection."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(
            f"Could not shut down one or more job flows since they are termination protected: {cluster_id}"
        )


class UnknownOperation(EmrError):
    """An operation that local_aws does not implement. The status is 501 because clients retry a 500."""

    code = "NotImplementedException"
    status = 501

    def __init__(self, operation: str) -> None:
        super().__init__(f"local_aws does not implement the EMR operation {operation}")
