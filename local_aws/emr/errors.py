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


class ClusterIsOver(ValidationFailed):
    """Steps for a cluster that is terminated or about to be."""

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
