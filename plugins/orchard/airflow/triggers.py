"""Triggers, which wait in the triggerer instead of on a worker."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.providers.amazon.aws.triggers.emr import EmrStepSensorTrigger
from airflow.triggers.base import BaseTrigger, TriggerEvent
from botocore.exceptions import ClientError

from orchard.cluster.emr_clusters import READY, describe_end
from orchard.run.progress import MOST_BYTES, Progress, parse_progress, progress_uri, sentence
from orchard.storage import split_uri

PROGRESS_SECONDS = 30
# A request for the progress, or for the state of a cluster, that takes longer is given up. The next one follows at the
# next poll.
READ_SECONDS = 10
_CLIENT: Mapping[str, Any] = {"connect_timeout": 5, "read_timeout": 5, "retries": {"total_max_attempts": 1}}


class StepEndTrigger(EmrStepSensorTrigger):
    """Wait until a step finishes. Cancel the step when a user marks or clears the task or its run.

    Meanwhile, log the progress of the step.

    Args:
        job_flow_id: the id of the cluster.
        step_id: the id of the step.
        progress_of: the `run_uri` and the `step` whose progress is logged, and when the step was `created`, in ISO
            form. An older progress is of an earlier attempt. None: no progress is logged.
        kwargs: the arguments of the provider's trigger.
    """

    def __init__(
        self, job_flow_id: str, step_id: str, progress_of: Mapping[str, str] | None = None, **kwargs: object
    ) -> None:
        super().__init__(job_flow_id, step_id, **kwargs)  # type: ignore[arg-type]  # serialised unchanged
        self.job_flow_id = job_flow_id
        self.step_id = step_id
        self.progress_of = progress_of
        if progress_of is not None:
            self.serialized_fields["progress_of"] = dict(progress_of)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the step. The progress is read beside, so that it neither delays nor fails the wait."""
        progress = asyncio.create_task(self._log_progress())
        try:
            async with aclosing(super().run()) as events:  # type: ignore[type-var]  # the provider's is a generator
                async for event in events:
                    progress.cancel()
                    yield event
        finally:
            progress.cancel()

    async def _log_progress(self) -> None:
        """Log a line about the step's progress every 30 seconds, if it has changed. The wait continues without it."""
        if self.progress_of is None:
            return
        hook: Any = AwsBaseHook(
            self.aws_conn_id, verify=self.verify, region_name=self.region_name, client_type="s3", config=dict(_CLIENT)
        )
        logged, has_failed = "", False
        while True:
            try:
                async with await hook.get_async_conn() as s3:
                    while True:
                        async with asyncio.timeout(READ_SECONDS):
                            found = await _read_progress(s3, **self.progress_of)
                        line = sentence(found, datetime.now(UTC)) if found is not None else ""
                        if line not in ("", logged):
                            self.log.info("%s", line)
                            logged = line
                        await asyncio.sleep(PROGRESS_SECONDS)
            except Exception as error:
                if not has_failed:
                    reason = str(error) or repr(error)
                    self.log.warning("the progress of step %s cannot be read: %s", self.step_id, reason)
                has_failed = True
            await asyncio.sleep(PROGRESS_SECONDS)

    async def on_kill(self) -> None:
        """Cancel the step. Airflow calls this when a user acts on the task, not when a triggerer stops."""
        async with await self.hook().get_async_conn() as emr:  # type: ignore[no-untyped-call]
            await emr.cancel_steps(
                ClusterId=self.job_flow_id, StepIds=[self.step_id], StepCancellationOption="TERMINATE_PROCESS"
            )
        self.log.info(
            "step %s of cluster %s: cancelled, because a user acted on the task", self.step_id, self.job_flow_id
        )


class HoldEndTrigger(BaseTrigger):
    """Wait until the end time of a hold, or until its cluster ends. An error of EMR does not end the hold.

    The event's `cluster_end` is the state of the cluster with the reason for it. It is empty at the end time.

    Args:
        job_flow_id: the id of the cluster.
        until: the end of the hold, in ISO form, with a time zone.
        poll_seconds: the time between two looks at the cluster.
        aws_conn_id: the connection of Airflow to AWS.
        region_name: the region of the cluster.
    """

    def __init__(
        self, job_flow_id: str, until: str, poll_seconds: float, aws_conn_id: str | None, region_name: str | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_flow_id = job_flow_id
        self.until = until
        self.poll_seconds = poll_seconds
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and the arguments, which Airflow stores."""
        names = ("job_flow_id", "until", "poll_seconds", "aws_conn_id", "region_name")
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the end of the hold."""
        yield TriggerEvent({"cluster_end": await self._wait()})  # type: ignore[no-untyped-call]

    async def _wait(self) -> str:
        hook: Any = AwsBaseHook(self.aws_conn_id, region_name=self.region_name, client_type="emr", config=dict(_CLIENT))
        has_failed = False
        while self._seconds_left() > 0:
            try:
                async with await hook.get_async_conn() as emr:
                    while self._seconds_left() > 0:
                        async with asyncio.timeout(READ_SECONDS):
                            answer = await emr.describe_cluster(ClusterId=self.job_flow_id)
                        status, has_failed = answer["Cluster"]["Status"], False
                        if status["State"] not in READY:
                            return describe_end(status)
                        await self._pause()
            except Exception as error:
                if not has_failed:
                    reason = str(error) or repr(error)
                    self.log.warning("hold: the state of cluster %s cannot be read: %s", self.job_flow_id, reason)
                has_failed = True
                await self._pause()
        return ""

    async def _pause(self) -> None:
        await asyncio.sleep(max(0.0, min(self.poll_seconds, self._seconds_left())))

    def _seconds_left(self) -> float:
        return (datetime.fromisoformat(self.until) - datetime.now(UTC)).total_seconds()


async def _read_progress(s3: Any, run_uri: str, step: str, created: str) -> Progress | None:
    """Return the progress of a step, None if there is none or if it is older than the step."""
    bucket, key = split_uri(progress_uri(run_uri, step))
    try:
        answer = await s3.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    # S3 counts modification times in whole seconds.
    is_older = answer["LastModified"] < datetime.fromisoformat(created).replace(microsecond=0)
    if is_older or answer["ContentLength"] > MOST_BYTES:
        return None
    return parse_progress(await answer["Body"].read(), step)
