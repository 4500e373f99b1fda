"""Add, describe, list and cancel steps."""

from local_aws.emr.checks import check_steps
from local_aws.emr.errors import TooManyStepIds
from local_aws.emr.model import Wire
from local_aws.emr.operations import operation
from local_aws.emr.operations.paging import page
from local_aws.emr.service import Emr

# https://docs.aws.amazon.com/emr/latest/APIReference/API_ListSteps.html
MAX_STEP_IDS = 10


@operation("AddJobFlowSteps")
def add_job_flow_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Append steps; if one is rejected, none is appended."""
    control = emr.control(parameters["JobFlowId"])
    with control.changed:
        active = sum(step.active for step in control.cluster.steps)
        check_steps(parameters["Steps"], control.cluster.step_concurrency_level, active)
        added = control.add_steps(parameters["Steps"], parameters.get("ExecutionRoleArn", ""))
        return {"StepIds": [step.id for step in added]}


@operation("DescribeStep")
def describe_step(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Describe a step."""
    control = emr.control(parameters["ClusterId"])
    with control.changed:
        return {"Step": control.step(parameters["StepId"]).describe()}


@operation("ListSteps")
def list_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the steps of a cluster, newest first, filtered by state and id."""
    control = emr.control(parameters["ClusterId"])
    states, ids = parameters.get("StepStates", []), parameters.get("StepIds", [])
    if len(ids) > MAX_STEP_IDS:
        raise TooManyStepIds(len(ids), MAX_STEP_IDS)
    with control.changed:
        steps = [step.describe() for step in reversed(control.cluster.steps)]
    listed, marker = page(
        steps,
        parameters.get("Marker"),
        lambda step: (not states or step["Status"]["State"] in states) and (not ids or step["Id"] in ids),
    )
    return {"Steps": listed, **marker}


@operation("CancelSteps")
def cancel_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Cancel steps; the response reports for each whether the cancellation was submitted."""
    control = emr.control(parameters["ClusterId"])
    results = []
    with control.changed:
        for step in [control.step(step_id) for step_id in parameters["StepIds"]]:
            reason = control.cancel_step(step)
            status = {"Status": "FAILED", "Reason": reason} if reason else {"Status": "SUBMITTED"}
            results.append({"StepId": step.id, **status})
    return {"CancelStepsInfoList": results}
