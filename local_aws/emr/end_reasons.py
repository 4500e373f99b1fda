"""The reasons why clusters end."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EndReason:
    """The Code and Message of a cluster's last StateChangeReason."""

    code: str
    message: str

    @property
    def clean(self) -> bool:
        """Whether the cluster becomes TERMINATED; any other code makes it TERMINATED_WITH_ERRORS."""
        return self.code in ("USER_REQUEST", "ALL_STEPS_COMPLETED")


USER_REQUEST = EndReason("USER_REQUEST", "Terminated by user request")
STEPS_COMPLETED = EndReason("ALL_STEPS_COMPLETED", "Steps completed")
STEP_FAILURE = EndReason("STEP_FAILURE", "Shut down as step failed")
IDLE = EndReason("ALL_STEPS_COMPLETED", "Auto-terminated: idle for longer than IdleTimeout")
SERVER_RESTARTED = EndReason("INTERNAL_ERROR", "local_aws was restarted before the cluster was ready")
INTERNAL_ERROR = EndReason("INTERNAL_ERROR", "local_aws failed; see its log")
