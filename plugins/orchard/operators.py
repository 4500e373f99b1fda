"""The few operators that the Amazon provider gets wrong, each narrowed by a few lines."""

from typing import Any

from airflow.providers.amazon.aws.operators.emr import EmrAddStepsOperator
from airflow.sdk import Context


class EmrAddStepOperator(EmrAddStepsOperator):
    """Add one step and return its id, so that a sensor takes it as `step_id=add_step.output`.

    The provider's operator returns a list, and an item of an XCom list cannot be named (`output[0]` raises ValueError).
    """

    def __init__(self, *, step: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(steps=[step], **kwargs)

    def execute(self, context: Context) -> str:  # type: ignore[override]  # the id, not a list of one
        (step_id,) = super().execute(context)
        return step_id
