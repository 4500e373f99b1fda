"""What may be changed of a living cluster: its policies, its concurrency, and what it does at the end of its steps."""

from local_aws.emr.checks import check_concurrency, check_idle_timeout
from local_aws.emr.model import Wire
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr


@operation("PutAutoTerminationPolicy")
def put_auto_termination_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set how long the cluster may be idle, from when it became so."""
    policy = parameters.get("AutoTerminationPolicy", {})
    check_idle_timeout(policy)
    life = emr.life(parameters["ClusterId"])
    with life.change():
        life.refuse_when_ending()
        life.cluster.set_idle_timeout(policy)
    return {}


@operation("GetAutoTerminationPolicy")
def get_auto_termination_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """How long the cluster may be idle."""
    life = emr.life(parameters["ClusterId"])
    with life.changed:
        seconds = life.cluster.idle_timeout_seconds
    return {} if seconds is None else {"AutoTerminationPolicy": {"IdleTimeout": seconds}}


@operation("RemoveAutoTerminationPolicy")
def remove_auto_termination_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Let the cluster be idle for ever."""
    life = emr.life(parameters["ClusterId"])
    with life.change():
        life.cluster.set_idle_timeout(None)
    return {}


@operation("PutManagedScalingPolicy")
def put_managed_scaling_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Keep a policy; nothing scales on one machine."""
    life = emr.life(parameters["ClusterId"])
    with life.change():
        life.refuse_when_ending()
        life.cluster.managed_scaling_policy = parameters["ManagedScalingPolicy"]
    return {}


@operation("GetManagedScalingPolicy")
def get_managed_scaling_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """The policy that is kept."""
    policy = emr.life(parameters["ClusterId"]).cluster.managed_scaling_policy
    return {} if policy is None else {"ManagedScalingPolicy": policy}


@operation("RemoveManagedScalingPolicy")
def remove_managed_scaling_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Forget the policy."""
    life = emr.life(parameters["ClusterId"])
    with life.change():
        life.cluster.managed_scaling_policy = None
    return {}


@operation("ModifyCluster")
def modify_cluster(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set how many steps may run at a time."""
    check_concurrency(parameters)
    life = emr.life(parameters["ClusterId"])
    with life.change():
        life.refuse_when_ending()
        life.cluster.step_concurrency_level = parameters.get(
            "StepConcurrencyLevel", life.cluster.step_concurrency_level
        )
        return {"StepConcurrencyLevel": life.cluster.step_concurrency_level}


@operation("SetTerminationProtection")
def set_termination_protection(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Protect clusters from termination by users, or not."""
    return _set(emr, parameters, termination_protected="TerminationProtected")


@operation("SetKeepJobFlowAliveWhenNoSteps")
def set_keep_job_flow_alive_when_no_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Let clusters wait for steps, or end when they have none."""
    return _set(emr, parameters, keep_alive="KeepJobFlowAliveWhenNoSteps")


@operation("SetUnhealthyNodeReplacement")
def set_unhealthy_node_replacement(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Keep whether bad nodes shall be replaced; here there are none."""
    return _set(emr, parameters, unhealthy_node_replacement="UnhealthyNodeReplacement")


@operation("SetVisibleToAllUsers")
def set_visible_to_all_users(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Keep who may see clusters; here everybody does."""
    return _set(emr, parameters, visible_to_all_users="VisibleToAllUsers")


def _set(emr: Emr, parameters: Wire, **members: str) -> Wire:
    """Set attributes of all clusters that a request names to its members; none when one of them is unknown."""
    for life in [emr.life(cluster_id) for cluster_id in parameters["JobFlowIds"]]:
        with life.change():
            for attribute, member in members.items():
                setattr(life.cluster, attribute, parameters[member])
    return {}
