"""Why clusters end."""

from dataclasses import dataclass


@dataclass(frozen=True)
class End:
    """The Code and Message of a cluster's last StateChangeReason."""

    code: str
    message: str

    @property
    def clean(self) -> bool:
        """Whether the cluster ends as TERMINATED; with any other code it is TERMINATED_WITH_ERRORS."""
        return self.code in ("USER_REQUEST", "ALL_STEPS_COMPLETED")


USER_REQUEST = End("USER_REQUEST", "Terminated by user request")
STEPS_COMPLETED = End("ALL_STEPS_COMPLETED", "Steps completed")
STEP_FAILURE = End("STEP_FAILURE", "Shut down as step failed")
IDLE = End("ALL_STEPS_COMPLETED", "Auto-terminated: idle for longer than IdleTimeout")
SERVER_RESTARTED = End("INTERNAL_ERROR", "local_aws was restarted before the cluster was ready")
INTERNAL_ERROR = End("INTERNAL_ERROR", "local_aws failed; see its log")
