"""Steps: add, show, cancel."""

from collections.abc import Iterable

from local_aws.emr.errors import NoSuchStep
from local_aws.emr.model import Cluster, Step, Wire
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr


@operation("AddJobFlowSteps")
def add_job_flow_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Append steps."""
    steps = emr.life(parameters["JobFlowId"]).add_steps(parameters["Steps"])
    return {"StepIds": [step.id for step in steps]}


@operation("DescribeStep")
def describe_step(emr: Emr, parameters: Wire, region: str) -> Wire:
    """One step."""
    life = emr.life(parameters["ClusterId"])
    with life.changed:
        return {"Step": _find_step(life.cluster, parameters["StepId"]).describe()}


@operation("ListSteps")
def list_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The steps of a cluster, newest first; by state or id."""
    life = emr.life(parameters["ClusterId"])
    states, ids = parameters.get("StepStates", []), parameters.get("StepIds", [])
    with life.changed:
        chosen: Iterable[Step] = reversed(life.cluster.steps)
        return {
            "Steps": [
                step.describe()
                for step in chosen
                if (not states or step.state in states) and (not ids or step.id in ids)
            ]
        }


@operation("CancelSteps")
def cancel_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Cancel steps that are pending or running; the answer says of each whether it will be."""
    life = emr.life(parameters["ClusterId"])
    answers = []
    with life.changed:
        for step in [_find_step(life.cluster, step_id) for step_id in parameters["StepIds"]]:
            refused = life.cancel_step(step)
            status = {"Status": "FAILED", "Reason": refused} if refused else {"Status": "SUBMITTED"}
            answers.append({"StepId": step.id, **status})
    return {"CancelStepsInfoList": answers}


def _find_step(cluster: Cluster, step_id: str) -> Step:
    for step in cluster.steps:
        if step.id == step_id:
            return step
    raise NoSuchStep(step_id)
