"""Steps: add, show, cancel."""

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
    """Append steps: all of them, or none when one is refused."""
    life = emr.life(parameters["JobFlowId"])
    with life.changed:
        active = sum(step.active for step in life.cluster.steps)
        check_steps(parameters["Steps"], life.cluster.step_concurrency_level, active)
        return {"StepIds": [step.id for step in life.add_steps(parameters["Steps"])]}


@operation("DescribeStep")
def describe_step(emr: Emr, parameters: Wire, region: str) -> Wire:
    """One step."""
    life = emr.life(parameters["ClusterId"])
    with life.changed:
        return {"Step": life.step(parameters["StepId"]).describe()}


@operation("ListSteps")
def list_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The steps of a cluster, newest first; by state or id."""
    life = emr.life(parameters["ClusterId"])
    states, ids = parameters.get("StepStates", []), parameters.get("StepIds", [])
    if len(ids) > MAX_STEP_IDS:
        raise TooManyStepIds(len(ids), MAX_STEP_IDS)
    with life.changed:
        steps = [step.describe() for step in reversed(life.cluster.steps)]
    listed, more = page(
        steps,
        parameters.get("Marker"),
        lambda step: (not states or step["Status"]["State"] in states) and (not ids or step["Id"] in ids),
    )
    return {"Steps": listed, **more}


@operation("CancelSteps")
def cancel_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Cancel steps that are pending or running; the answer says of each whether it will be."""
    life = emr.life(parameters["ClusterId"])
    answers = []
    with life.changed:
        for step in [life.step(step_id) for step_id in parameters["StepIds"]]:
            refused = life.cancel_step(step)
            status = {"Status": "FAILED", "Reason": refused} if refused else {"Status": "SUBMITTED"}
            answers.append({"StepId": step.id, **status})
    return {"CancelStepsInfoList": answers}
