"""Change the settings of a cluster: policies, concurrency, termination protection, and whether it waits for steps."""

from local_aws.emr.checks import check_concurrency, check_idle_timeout
from local_aws.emr.model import Wire
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr


@operation("PutAutoTerminationPolicy")
def put_auto_termination_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set how long the cluster may be idle. The time counts from the moment when it became idle."""
    policy = parameters.get("AutoTerminationPolicy", {})
    check_idle_timeout(policy)
    control = emr.control(parameters["ClusterId"])
    with control.change():
        control.check_not_ending()
        control.cluster.set_idle_timeout(policy)
    return {}


@operation("GetAutoTerminationPolicy")
def get_auto_termination_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Return how long the cluster may be idle."""
    control = emr.control(parameters["ClusterId"])
    with control.changed:
        seconds = control.cluster.idle_timeout_seconds
    return {} if seconds is None else {"AutoTerminationPolicy": {"IdleTimeout": seconds}}


@operation("RemoveAutoTerminationPolicy")
def remove_auto_termination_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Remove the limit on idle time."""
    control = emr.control(parameters["ClusterId"])
    with control.change():
        control.cluster.set_idle_timeout(None)
    return {}


@operation("PutManagedScalingPolicy")
def put_managed_scaling_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Store a managed scaling policy; it has no effect on one machine."""
    control = emr.control(parameters["ClusterId"])
    with control.change():
        control.check_not_ending()
        control.cluster.managed_scaling_policy = parameters["ManagedScalingPolicy"]
    return {}


@operation("GetManagedScalingPolicy")
def get_managed_scaling_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Return the stored managed scaling policy."""
    policy = emr.control(parameters["ClusterId"]).cluster.managed_scaling_policy
    return {} if policy is None else {"ManagedScalingPolicy": policy}


@operation("RemoveManagedScalingPolicy")
def remove_managed_scaling_policy(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Remove the managed scaling policy."""
    control = emr.control(parameters["ClusterId"])
    with control.change():
        control.cluster.managed_scaling_policy = None
    return {}


@operation("ModifyCluster")
def modify_cluster(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set the step concurrency level of a cluster."""
    check_concurrency(parameters)
    control = emr.control(parameters["ClusterId"])
    with control.change():
        control.check_not_ending()
        control.cluster.step_concurrency_level = parameters.get(
            "StepConcurrencyLevel", control.cluster.step_concurrency_level
        )
        return {"StepConcurrencyLevel": control.cluster.step_concurrency_level}


@operation("SetTerminationProtection")
def set_termination_protection(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set whether clusters are protected from termination by users."""
    return _set(emr, parameters, termination_protected="TerminationProtected")


@operation("SetKeepJobFlowAliveWhenNoSteps")
def set_keep_job_flow_alive_when_no_steps(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set whether clusters wait for more steps or terminate after their last one."""
    return _set(emr, parameters, keep_alive="KeepJobFlowAliveWhenNoSteps")


@operation("SetUnhealthyNodeReplacement")
def set_unhealthy_node_replacement(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set whether unhealthy nodes are replaced; it has no effect on one machine."""
    return _set(emr, parameters, unhealthy_node_replacement="UnhealthyNodeReplacement")


@operation("SetVisibleToAllUsers")
def set_visible_to_all_users(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Set whether clusters are visible to all users; local_aws shows them to everyone."""
    return _set(emr, parameters, visible_to_all_users="VisibleToAllUsers")


def _set(emr: Emr, parameters: Wire, **members: str) -> Wire:
    """Copy members of a request to attributes of all clusters that it names; if one is unknown, change none."""
    for control in [emr.control(cluster_id) for cluster_id in parameters["JobFlowIds"]]:
        with control.change():
            for attribute, member in members.items():
                setattr(control.cluster, attribute, parameters[member])
    return {}
