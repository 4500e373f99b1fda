"""The few operators that the Amazon provider gets wrong, each narrowed by a few lines."""

from typing import Any

from airflow.providers.amazon.aws.operators.emr import EmrAddStepsOperator
from airflow.providers.amazon.aws.sensors.emr import EmrStepSensor
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException


class EmrAddStepOperator(EmrAddStepsOperator):
    """Add one step and return its id, so that a sensor takes it as `step_id=add_step.output`.

    The provider's operator returns a list, and an item of an XCom list cannot be named (`output[0]` raises ValueError).
    """

    def __init__(self, *, step: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(steps=[step], **kwargs)

    def execute(self, context: Context) -> str:  # type: ignore[override]  # the id, not a list of one
        (step_id,) = super().execute(context)
        return step_id


class EmrStepEndSensor(EmrStepSensor):
    """Fail for good when the step failed or the time for it is over; a retry is for polls that were lost.

    The provider's sensor would poll a failed step again, and take its whole time once more with each retry.
    """

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:
        try:
            super().execute_complete(context, event)
        except AirflowException as error:
            raise AirflowFailException(str(error)) from error
