"""Triggers, which wait in the triggerer instead of on a worker."""

from airflow.providers.amazon.aws.triggers.emr import EmrStepSensorTrigger


class StepEndTrigger(EmrStepSensorTrigger):
    """Wait until a step finishes. Cancel the step when a user marks or clears the task or its run."""

    def __init__(self, job_flow_id: str, step_id: str, **kwargs: object) -> None:
        super().__init__(job_flow_id, step_id, **kwargs)  # type: ignore[arg-type]  # serialised unchanged
        self.job_flow_id = job_flow_id
        self.step_id = step_id

    async def on_kill(self) -> None:
        """Cancel the step. Airflow calls this when a user acts on the task, not when a triggerer stops."""
        async with await self.hook().get_async_conn() as emr:  # type: ignore[no-untyped-call]
            await emr.cancel_steps(
                ClusterId=self.job_flow_id, StepIds=[self.step_id], StepCancellationOption="TERMINATE_PROCESS"
            )
        self.log.info(
            "step %s of cluster %s: cancelled, because a user acted on the task", self.step_id, self.job_flow_id
        )
