"""What a cluster is made of: instances, bootstrap actions."""

from local_aws.emr.model import Wire
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr


@operation("ListInstances")
def list_instances(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The instances that the request asked for, by state and role; they all are this machine."""
    life = emr.life(parameters["ClusterId"])
    states = parameters.get("InstanceStates", [])
    fleets = [parameters["InstanceFleetType"]] if "InstanceFleetType" in parameters else []
    with life.changed:
        listed = life.cluster.list_instances(parameters.get("InstanceGroupTypes", fleets))
    return {"Instances": [item for item in listed if not states or item["Status"]["State"] in states]}


@operation("ListBootstrapActions")
def list_bootstrap_actions(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The bootstrap actions of a cluster."""
    actions = emr.life(parameters["ClusterId"]).cluster.request.get("BootstrapActions", [])
    scripts = [(action["Name"], action["ScriptBootstrapAction"]) for action in actions]
    return {
        "BootstrapActions": [
            {"Name": name, "ScriptPath": script["Path"], "Args": script.get("Args", [])} for name, script in scripts
        ]
    }
