"""EMR's JSON 1.1 protocol: check a request by botocore's model of the service, answer it, say errors as EMR does."""

import gzip
import json
import logging
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape
from botocore.validate import ParamValidator
from werkzeug.wrappers import Request, Response

from local_aws.emr.errors import EmrError, NoSuchCluster, NoSuchStep, UnknownOperation, ValidationFailed
from local_aws.emr.life import SERVER_STOPPED, ClusterLife
from local_aws.emr.model import Cluster, Step, Wire
from local_aws.emr.runner import Runner

log = logging.getLogger(__name__)

TARGET_PREFIX = "ElasticMapReduce."
DEFAULT_REGION = "us-east-1"
_CREDENTIAL_REGION = re.compile(r"Credential=[^/]+/\d+/([^/]+)/")

Handler = Callable[["EmrApi", Wire, str], Wire]
_handlers: dict[str, Handler] = {}


def operation(name: str) -> Callable[[Handler], Handler]:
    """Register the method that answers an operation."""

    def register(handler: Handler) -> Handler:
        _handlers[name] = handler
        return handler

    return register


@cache
def release_labels(region: str) -> frozenset[str]:
    """The release labels that moto knows in a region; none in an unknown region."""
    table = files("moto") / f"emr/resources/release-labels-{region}.json.gz"
    return frozenset(json.loads(gzip.decompress(table.read_bytes()))) if table.is_file() else frozenset()


class EmrApi:
    """The clusters of one server, and the operations on them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._lives: dict[str, ClusterLife] = {}
        self._model = botocore.session.get_session().get_service_model("emr")

    def respond(self, request: Request) -> Response:
        """The answer to one HTTP request."""
        name = request.headers["X-Amz-Target"].removeprefix(TARGET_PREFIX)
        scope = _CREDENTIAL_REGION.search(request.headers.get("Authorization", ""))
        region = scope.group(1) if scope else DEFAULT_REGION
        try:
            answer = self._answer(name, request.get_data(), region)
            status = 200
        except EmrError as error:
            answer, status = {"__type": error.code, "message": str(error)}, error.status
        except Exception:
            log.exception("%s failed", name)
            answer, status = {"__type": "InternalServerException", "message": f"{name} failed; see the log"}, 500
        log.debug("%s %s %d", region, name, status)
        body = json.dumps(answer, default=_timestamp)
        return Response(body, status=status, content_type="application/x-amz-json-1.1")

    def shutdown(self) -> None:
        """End all clusters and wait until their processes are gone."""
        lives = list(self._lives.values())
        for life in lives:
            life.terminate(SERVER_STOPPED)
        for life in lives:
            life.join()

    def _answer(self, name: str, body: bytes, region: str) -> Wire:
        if name not in _handlers:
            raise UnknownOperation(name)
        try:
            parameters = json.loads(body or b"{}")
        except ValueError as error:
            raise ValidationFailed(f"the request is not JSON: {error}") from error
        check_parameters(self._model.operation_model(name), parameters)
        return _handlers[name](self, parameters, region)

    def _life(self, cluster_id: str) -> ClusterLife:
        if cluster_id not in self._lives:
            raise NoSuchCluster(cluster_id)
        return self._lives[cluster_id]

    @operation("RunJobFlow")
    def run_job_flow(self, parameters: Wire, region: str) -> Wire:
        """Make a cluster and let it live."""
        label = parameters.get("ReleaseLabel")
        if label not in release_labels(region):
            raise ValidationFailed(f"The supplied release label is invalid: {label}.")
        if len(parameters.get("BootstrapActions", [])) > 16:
            raise ValidationFailed("The maximum number of bootstrap actions is 16.")
        cluster = Cluster(parameters, region)
        life = ClusterLife(cluster, self._runner)
        self._lives[cluster.id] = life
        log.info("cluster %s: STARTING %s", cluster.id, parameters["Name"])
        life.start()
        return {"JobFlowId": cluster.id, "ClusterArn": cluster.arn}

    @operation("DescribeCluster")
    def describe_cluster(self, parameters: Wire, region: str) -> Wire:
        """One cluster."""
        life = self._life(parameters["ClusterId"])
        with life.changed:
            return {"Cluster": life.cluster.describe()}

    @operation("ListClusters")
    def list_clusters(self, parameters: Wire, region: str) -> Wire:
        """All clusters of a region, newest first; by state and time of creation."""
        states = parameters.get("ClusterStates", [])
        after = parameters.get("CreatedAfter", 0)
        before = parameters.get("CreatedBefore", float("inf"))
        listed = []
        for life in reversed(list(self._lives.values())):
            with life.changed:
                cluster = life.cluster
                created = cluster.timeline["CreationDateTime"].timestamp()
                if cluster.region == region and after <= created <= before and (not states or cluster.state in states):
                    listed.append(cluster.summary())
        return {"Clusters": listed}

    @operation("TerminateJobFlows")
    def terminate_job_flows(self, parameters: Wire, region: str) -> Wire:
        """Ask for the end of clusters."""
        for life in [self._life(cluster_id) for cluster_id in parameters["JobFlowIds"]]:
            life.terminate()
        return {}

    @operation("SetTerminationProtection")
    def set_termination_protection(self, parameters: Wire, region: str) -> Wire:
        """Protect clusters from termination by users, or not."""
        for life in [self._life(cluster_id) for cluster_id in parameters["JobFlowIds"]]:
            with life.changed:
                life.cluster.termination_protected = parameters["TerminationProtected"]
        return {}

    @operation("AddJobFlowSteps")
    def add_job_flow_steps(self, parameters: Wire, region: str) -> Wire:
        """Append steps."""
        steps = self._life(parameters["JobFlowId"]).add_steps(parameters["Steps"])
        return {"StepIds": [step.id for step in steps]}

    @operation("DescribeStep")
    def describe_step(self, parameters: Wire, region: str) -> Wire:
        """One step."""
        life = self._life(parameters["ClusterId"])
        with life.changed:
            return {"Step": _find_step(life.cluster, parameters["StepId"]).describe()}

    @operation("ListSteps")
    def list_steps(self, parameters: Wire, region: str) -> Wire:
        """The steps of a cluster, newest first; by state or id."""
        life = self._life(parameters["ClusterId"])
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
    def cancel_steps(self, parameters: Wire, region: str) -> Wire:
        """Cancel steps that are pending or running; the answer says of each whether it will be."""
        life = self._life(parameters["ClusterId"])
        answers = []
        with life.changed:
            for step in [_find_step(life.cluster, step_id) for step_id in parameters["StepIds"]]:
                refused = life.cancel_step(step)
                status = {"Status": "FAILED", "Reason": refused} if refused else {"Status": "SUBMITTED"}
                answers.append({"StepId": step.id, **status})
        return {"CancelStepsInfoList": answers}

    @operation("ListInstances")
    def list_instances(self, parameters: Wire, region: str) -> Wire:
        """The instances that the request asked for, by state and role; they all are this machine."""
        life = self._life(parameters["ClusterId"])
        states = parameters.get("InstanceStates", [])
        fleets = [parameters["InstanceFleetType"]] if "InstanceFleetType" in parameters else []
        with life.changed:
            listed = life.cluster.list_instances(parameters.get("InstanceGroupTypes", fleets))
        return {"Instances": [item for item in listed if not states or item["Status"]["State"] in states]}

    @operation("ListBootstrapActions")
    def list_bootstrap_actions(self, parameters: Wire, region: str) -> Wire:
        """The bootstrap actions of a cluster."""
        actions = self._life(parameters["ClusterId"]).cluster.request.get("BootstrapActions", [])
        scripts = [(action["Name"], action["ScriptBootstrapAction"]) for action in actions]
        return {
            "BootstrapActions": [
                {"Name": name, "ScriptPath": script["Path"], "Args": script.get("Args", [])} for name, script in scripts
            ]
        }

    @operation("AddTags")
    def add_tags(self, parameters: Wire, region: str) -> Wire:
        """Set tags of a cluster."""
        life = self._life(parameters["ResourceId"])
        with life.changed:
            life.cluster.tags |= {tag["Key"]: tag.get("Value", "") for tag in parameters["Tags"]}
        return {}

    @operation("RemoveTags")
    def remove_tags(self, parameters: Wire, region: str) -> Wire:
        """Remove tags of a cluster."""
        life = self._life(parameters["ResourceId"])
        with life.changed:
            for key in parameters["TagKeys"]:
                life.cluster.tags.pop(key, None)
        return {}


def check_parameters(model: OperationModel, parameters: Wire) -> None:
    """Check a request against the service model: required members, types, lengths, and enums.

    Raises:
        ValidationFailed: it does not fit; the message lists every fault.
    """
    shape = model.input_shape
    if shape is None:
        return
    report = ParamValidator().validate(parameters, shape)
    faults = [report.generate_report()] if report.has_errors() else []
    # botocore's validator leaves enums to the service, and that is us.
    faults += [] if report.has_errors() else _wrong_enums(shape, parameters, "")
    if faults:
        raise ValidationFailed(f"{len(faults)} validation error(s) in {model.name}: {'; '.join(faults)}")


def _wrong_enums(shape: Shape | None, value: Any, name: str) -> list[str]:
    match shape:
        case StructureShape():
            known = [(member, value[member]) for member in shape.members if member in value]
            return [fault for key, item in known for fault in _wrong_enums(shape.members[key], item, f"{name}.{key}")]
        case ListShape():
            return [
                fault
                for index, item in enumerate(value)
                for fault in _wrong_enums(shape.member, item, f"{name}[{index}]")
            ]
        case MapShape():
            return [fault for key, item in value.items() for fault in _wrong_enums(shape.value, item, f"{name}.{key}")]
    allowed = getattr(shape, "enum", [])
    if allowed and value not in allowed:
        return [f"Value '{value}' at '{name.lstrip('.')}' must be one of [{', '.join(allowed)}]"]
    return []


def _find_step(cluster: Cluster, step_id: str) -> Step:
    for step in cluster.steps:
        if step.id == step_id:
            return step
    raise NoSuchStep(step_id)


def _timestamp(value: Any) -> float:
    if isinstance(value, datetime):
        return value.astimezone(UTC).timestamp()
    raise TypeError(f"cannot write {value!r} as JSON")
