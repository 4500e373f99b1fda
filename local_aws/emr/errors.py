"""EMR's errors, one class a fault."""


class EmrError(Exception):
    """An error answer: `code` is what boto3 shows as Error.Code."""

    code = "InvalidRequestException"
    status = 400


class ValidationFailed(EmrError):
    """A request that EMR refuses for its content."""

    code = "ValidationException"


class NoSuchCluster(EmrError):
    """EMR's answer to an unknown cluster id."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(f"Cluster id '{cluster_id}' is not valid.")


class NoSuchStep(EmrError):
    """EMR's answer to an unknown step id."""

    def __init__(self, step_id: str) -> None:
        super().__init__(f"Step id '{step_id}' is not valid.")


class TooManyStepIds(EmrError):
    """ListSteps with more ids than EMR takes."""

    def __init__(self, asked: int, allowed: int) -> None:
        super().__init__(f"ListSteps takes at most {allowed} step ids, not {asked}.")


class NoSuchPool(EmrError):
    """EMR's answer to an unknown id of an instance group or fleet."""

    def __init__(self, pool_id: str) -> None:
        kind = "Instance fleet" if pool_id.startswith("if-") else "Instance group"
        super().__init__(f"{kind} id '{pool_id}' is not valid.")


class NoSuchSecurityConfiguration(EmrError):
    """EMR's answer to an unknown security configuration."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Security configuration with name '{name}' does not exist.")


class InvalidMarker(EmrError):
    """A marker that no page of this list ended with."""

    def __init__(self, marker: str) -> None:
        super().__init__(f"Marker '{marker}' is not valid.")


class WrongCollection(EmrError):
    """An operation on instance groups for a cluster of fleets, or the other way round."""

    def __init__(self, operation: str, other: str, *, uses_fleets: bool) -> None:
        uses = "instance fleets" if uses_fleets else "instance groups"
        super().__init__(
            "Instance fleets and instance groups are mutually exclusive. The EMR cluster specified in the request uses "
            f"{uses}. The {operation} operation does not support clusters that use {uses}. Use the {other} operation "
            "instead."
        )


class ClusterIsOver(ValidationFailed):
    """Steps or changes for a cluster that is terminated or about to be."""

    def __init__(self, cluster_id: str, state: str) -> None:
        super().__init__(
            f"A job flow that is shutting down, terminated, or finished may not be modified: {cluster_id} is {state}"
        )


class Protected(ValidationFailed):
    """Termination of a cluster with termination protection."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(
            f"Could not shut down one or more job flows since they are termination protected: {cluster_id}"
        )


class UnknownOperation(EmrError):
    """An operation that this EMR does not have; 501, because clients repeat a 500."""

    code = "NotImplementedException"
    status = 501

    def __init__(self, operation: str) -> None:
        super().__init__(f"local_aws has no EMR operation {operation}")
