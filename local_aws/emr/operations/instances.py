"""What a cluster is made of: instances in groups or fleets, bootstrap actions."""

from local_aws.emr.checks import check_instance_types
from local_aws.emr.errors import (
    EmrError,
    NoSuchPool,
    UnknownOperation,
    ValidationFailed,
    WrongCollection,
)
from local_aws.emr.hardware import Pool, number_pools
from local_aws.emr.life import ClusterLife
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr


@operation("ListInstances")
def list_instances(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The instances that the request asked for, by state, role, group and fleet; they all are this machine."""
    life = emr.life(parameters["ClusterId"])
    states = parameters.get("InstanceStates", [])
    fleets = [parameters["InstanceFleetType"]] if "InstanceFleetType" in parameters else []
    with life.changed:
        listed = life.cluster.list_instances(parameters.get("InstanceGroupTypes", fleets))
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
    """The groups of a cluster of groups."""
    life = emr.life(parameters["ClusterId"])
    with life.changed:
        _refuse_other_kind(life.cluster, "ListInstanceGroups", "ListInstanceFleets", uses_fleets=True)
        return {"InstanceGroups": life.cluster.list_pools()}


@operation("ListInstanceFleets")
def list_instance_fleets(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The fleets of a cluster of fleets."""
    life = emr.life(parameters["ClusterId"])
    with life.changed:
        _refuse_other_kind(life.cluster, "ListInstanceFleets", "ListInstanceGroups", uses_fleets=False)
        return {"InstanceFleets": life.cluster.list_pools()}


@operation("AddInstanceGroups")
def add_instance_groups(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Add task groups."""
    life = emr.life(parameters["JobFlowId"])
    with life.change():
        _refuse_other_kind(life.cluster, "AddInstanceGroups", "AddInstanceFleet", uses_fleets=True)
        for role in (group["InstanceRole"] for group in parameters["InstanceGroups"]):
            if role != "TASK":
                raise ValidationFailed(f"Only task instance groups may be added to a cluster, not {role}.")
        added = _add_pools(life, parameters["InstanceGroups"])
    return {
        "JobFlowId": life.cluster.id,
        "InstanceGroupIds": [pool.id for pool in added],
        "ClusterArn": life.cluster.arn,
    }


@operation("AddInstanceFleet")
def add_instance_fleet(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Add a task fleet; a cluster has one fleet of a role at most."""
    life = emr.life(parameters["ClusterId"])
    fleet = parameters["InstanceFleet"]
    role = fleet["InstanceFleetType"]
    with life.change():
        _refuse_other_kind(life.cluster, "AddInstanceFleet", "AddInstanceGroups", uses_fleets=False)
        if role != "TASK":
            raise ValidationFailed(f"Only a task instance fleet may be added to a cluster, not {role}.")
        if any(pool.role == role for pool in life.cluster.pools):
            raise EmrError(f"The cluster {life.cluster.id} has an instance fleet {role} already.")
        (added,) = _add_pools(life, [fleet])
    return {"ClusterId": life.cluster.id, "InstanceFleetId": added.id, "ClusterArn": life.cluster.arn}


@operation("ModifyInstanceGroups")
def modify_instance_groups(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Take new sizes of core and task groups: all, or none when one is refused."""
    wanted = parameters.get("InstanceGroups", [])
    ids = [parameters["ClusterId"]] if "ClusterId" in parameters else list(emr.lives)
    found = [_find_pool([emr.life(cluster_id) for cluster_id in ids], group["InstanceGroupId"]) for group in wanted]
    for group, (life, pool) in zip(wanted, found, strict=True):
        _check_change(life, pool)
        if "Configurations" in group:
            raise UnknownOperation("ModifyInstanceGroups with Configurations")
    for group, (life, pool) in zip(wanted, found, strict=True):
        with life.change():
            pool.config |= {key: group[key] for key in ("InstanceCount", "ShrinkPolicy") if key in group}
    return {}


@operation("ModifyInstanceFleet")
def modify_instance_fleet(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Take new capacities of a core or task fleet."""
    change = parameters["InstanceFleet"]
    life, pool = _find_pool([emr.life(parameters["ClusterId"])], change["InstanceFleetId"])
    _check_change(life, pool)
    if "InstanceTypeConfigs" in change:
        check_instance_types(
            (config["InstanceType"] for config in change["InstanceTypeConfigs"]), life.cluster.request["ReleaseLabel"]
        )
    with life.change():
        pool.config |= {key: value for key, value in change.items() if key not in ("InstanceFleetId", "Context")}
    return {}


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


def _refuse_other_kind(cluster: Cluster, operation_name: str, other: str, *, uses_fleets: bool) -> None:
    if cluster.uses_fleets is uses_fleets:
        raise WrongCollection(operation_name, other, uses_fleets=uses_fleets)


def _add_pools(life: ClusterLife, configs: list[Wire]) -> list[Pool]:
    cluster = life.cluster
    life.refuse_when_ending()
    added = number_pools(cluster.id, configs, is_fleet=cluster.uses_fleets, first=len(cluster.pools))
    check_instance_types((kind for pool in added for kind in pool.types), cluster.request["ReleaseLabel"])
    cluster.pools += added
    return added


def _find_pool(lives: list[ClusterLife], pool_id: str) -> tuple[ClusterLife, Pool]:
    for life in lives:
        for pool in life.cluster.pools:
            if pool.id == pool_id:
                return life, pool
    raise NoSuchPool(pool_id)


def _check_change(life: ClusterLife, pool: Pool) -> None:
    kind = "instance fleet" if pool.is_fleet else "instance group"
    if life.cluster.state not in ("RUNNING", "WAITING"):
        raise ValidationFailed(
            f"An {kind} may only be modified when the cluster is running or waiting: "
            f"{life.cluster.id} is {life.cluster.state}"
        )
    if pool.role == "MASTER":
        raise ValidationFailed(f"The size of a master {kind} may not be modified: {pool.id}")
