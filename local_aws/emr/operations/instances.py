"""List and change the instance groups and fleets of a cluster, and list its instances and bootstrap actions."""

from local_aws.emr.checks import check_instance_types
from local_aws.emr.control import ClusterControl
from local_aws.emr.errors import (
    EmrError,
    NoSuchPool,
    UnknownOperation,
    ValidationFailed,
    WrongCollection,
)
from local_aws.emr.hardware import Pool, number_pools
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr


@operation("ListInstances")
def list_instances(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the requested instances, filtered by state, role, group and fleet; they all represent this machine."""
    control = emr.control(parameters["ClusterId"])
    states = parameters.get("InstanceStates", [])
    fleets = [parameters["InstanceFleetType"]] if "InstanceFleetType" in parameters else []
    with control.changed:
        listed = control.cluster.list_instances(parameters.get("InstanceGroupTypes", fleets))
    pool_id = parameters.get("InstanceGroupId", parameters.get("InstanceFleetId"))
    return {
        "Instances": [
            item
            for item in listed
            if (not states or item["Status"]["State"] in states)
            and (pool_id is None or pool_id in (item.get("InstanceGroupId"), item.get("InstanceFleetId")))
        ]
    }


@operation("ListInstanceGroups")
def list_instance_groups(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the instance groups of a cluster."""
    control = emr.control(parameters["ClusterId"])
    with control.changed:
        _check_collection(control.cluster, "ListInstanceGroups", "ListInstanceFleets", uses_fleets=True)
        return {"InstanceGroups": control.cluster.list_pools()}


@operation("ListInstanceFleets")
def list_instance_fleets(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the instance fleets of a cluster."""
    control = emr.control(parameters["ClusterId"])
    with control.changed:
        _check_collection(control.cluster, "ListInstanceFleets", "ListInstanceGroups", uses_fleets=False)
        return {"InstanceFleets": control.cluster.list_pools()}


@operation("AddInstanceGroups")
def add_instance_groups(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Add task instance groups."""
    control = emr.control(parameters["JobFlowId"])
    with control.change():
        _check_collection(control.cluster, "AddInstanceGroups", "AddInstanceFleet", uses_fleets=True)
        for role in (group["InstanceRole"] for group in parameters["InstanceGroups"]):
            if role != "TASK":
                raise ValidationFailed(f"Only TASK instance groups may be added to a cluster, not {role}.")
        added = _add_pools(control, parameters["InstanceGroups"])
    return {
        "JobFlowId": control.cluster.id,
        "InstanceGroupIds": [pool.id for pool in added],
        "ClusterArn": control.cluster.arn,
    }


@operation("AddInstanceFleet")
def add_instance_fleet(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Add the task instance fleet; a cluster has at most one fleet per role."""
    control = emr.control(parameters["ClusterId"])
    fleet = parameters["InstanceFleet"]
    role = fleet["InstanceFleetType"]
    with control.change():
        _check_collection(control.cluster, "AddInstanceFleet", "AddInstanceGroups", uses_fleets=False)
        if role != "TASK":
            raise ValidationFailed(f"Only a TASK instance fleet may be added to a cluster, not {role}.")
        if any(pool.role == role for pool in control.cluster.pools):
            raise EmrError(f"The cluster {control.cluster.id} already has a {role} instance fleet.")
        (added,) = _add_pools(control, [fleet])
    return {"ClusterId": control.cluster.id, "InstanceFleetId": added.id, "ClusterArn": control.cluster.arn}


@operation("ModifyInstanceGroups")
def modify_instance_groups(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Resize core and task instance groups; if one change is rejected, none is made."""
    changes = parameters.get("InstanceGroups", [])
    ids = [parameters["ClusterId"]] if "ClusterId" in parameters else list(emr.controls)
    found = [_find_pool([emr.control(cluster_id) for cluster_id in ids], group["InstanceGroupId"]) for group in changes]
    for group, (control, pool) in zip(changes, found, strict=True):
        _check_change(control, pool)
        if "Configurations" in group:
            raise UnknownOperation("ModifyInstanceGroups with Configurations")
    for group, (control, pool) in zip(changes, found, strict=True):
        with control.change():
            pool.config |= {key: group[key] for key in ("InstanceCount", "ShrinkPolicy") if key in group}
    return {}


@operation("ModifyInstanceFleet")
def modify_instance_fleet(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Change the capacities of a core or task instance fleet."""
    change = parameters["InstanceFleet"]
    control, pool = _find_pool([emr.control(parameters["ClusterId"])], change["InstanceFleetId"])
    _check_change(control, pool)
    if "InstanceTypeConfigs" in change:
        types = [config["InstanceType"] for config in change["InstanceTypeConfigs"]]
        check_instance_types(types, control.cluster.request["ReleaseLabel"])
    with control.change():
        pool.config |= {key: value for key, value in change.items() if key not in ("InstanceFleetId", "Context")}
    return {}


@operation("ListBootstrapActions")
def list_bootstrap_actions(emr: Emr, parameters: Wire, region: str) -> Wire:
    """List the bootstrap actions of a cluster."""
    actions = emr.control(parameters["ClusterId"]).cluster.request.get("BootstrapActions", [])
    scripts = [(action["Name"], action["ScriptBootstrapAction"]) for action in actions]
    return {
        "BootstrapActions": [
            {"Name": name, "ScriptPath": script["Path"], "Args": script.get("Args", [])} for name, script in scripts
        ]
    }


def _check_collection(cluster: Cluster, operation_name: str, alternative: str, *, uses_fleets: bool) -> None:
    if cluster.uses_fleets is uses_fleets:
        raise WrongCollection(operation_name, alternative, uses_fleets=uses_fleets)


def _add_pools(control: ClusterControl, configs: list[Wire]) -> list[Pool]:
    cluster = control.cluster
    control.check_not_ending()
    added = number_pools(cluster.id, configs, is_fleet=cluster.uses_fleets, first=len(cluster.pools))
    check_instance_types((kind for pool in added for kind in pool.types), cluster.request["ReleaseLabel"])
    cluster.pools += added
    return added


def _find_pool(controls: list[ClusterControl], pool_id: str) -> tuple[ClusterControl, Pool]:
    for control in controls:
        for pool in control.cluster.pools:
            if pool.id == pool_id:
                return control, pool
    raise NoSuchPool(pool_id)


def _check_change(control: ClusterControl, pool: Pool) -> None:
    kind = "instance fleet" if pool.is_fleet else "instance group"
    if control.cluster.state not in ("RUNNING", "WAITING"):
        raise ValidationFailed(
            f"An {kind} may only be modified when the cluster is running or waiting: "
            f"{control.cluster.id} is {control.cluster.state}"
        )
    if pool.role == "MASTER":
        raise ValidationFailed(f"The size of a master {kind} may not be modified: {pool.id}")
