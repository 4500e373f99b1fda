"""Clusters and steps as EMR shows them, and the state transitions that are allowed."""

import secrets
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from moto.core import DEFAULT_ACCOUNT_ID

from local_aws.emr.hardware import Pool, make_pools
from local_aws.emr.hardware import Wire as Wire

_AFTER_START = ("TERMINATING", "TERMINATED_WITH_ERRORS")
CLUSTER_TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "STARTING": ("BOOTSTRAPPING", *_AFTER_START),
    "BOOTSTRAPPING": ("RUNNING", "WAITING", *_AFTER_START),
    "RUNNING": ("WAITING", *_AFTER_START),
    "WAITING": ("RUNNING", *_AFTER_START),
    "TERMINATING": ("TERMINATED", "TERMINATED_WITH_ERRORS"),
    "TERMINATED": (),
    "TERMINATED_WITH_ERRORS": (),
}
STEP_TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "PENDING": ("RUNNING", "CANCELLED"),
    "RUNNING": ("CANCEL_PENDING", "COMPLETED", "FAILED", "CANCELLED"),
    "CANCEL_PENDING": ("COMPLETED", "FAILED", "CANCELLED"),
    "COMPLETED": (),
    "FAILED": (),
    "CANCELLED": (),
}
ACTIVE_STEP_STATES = ("PENDING", "RUNNING", "CANCEL_PENDING")
DEFAULT_IDLE_TIMEOUT_SECONDS = 3600
# The members of Instances for security groups in place of EMR's default ones: of the master, of the other nodes, and of
# EMR's network interfaces in private subnets.
SECURITY_GROUPS = ("EmrManagedMasterSecurityGroup", "EmrManagedSlaveSecurityGroup", "ServiceAccessSecurityGroup")
ADDITIONAL_SECURITY_GROUPS = ("AdditionalMasterSecurityGroups", "AdditionalSlaveSecurityGroups")


class IllegalTransition(AssertionError):
    """A state transition that is not allowed: a bug in local_aws."""


def new_id(prefix: str) -> str:
    """Return a new id in EMR's format: the prefix `j-` or `s-`, and 13 letters and digits."""
    return prefix + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(13))


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


@dataclass
class Step:
    """One step; `config` is the StepConfig of the request."""

    config: Wire
    id: str = field(default_factory=lambda: new_id("s-"))
    execution_role_arn: str = ""
    state: str = "PENDING"
    reason: Wire = field(default_factory=dict)
    failure: Wire = field(default_factory=dict)
    timeline: Wire = field(default_factory=lambda: {"CreationDateTime": now()})
    logs_uploaded: bool = False

    @property
    def active(self) -> bool:
        """Whether the step has not ended yet."""
        return self.state in ACTIVE_STEP_STATES

    @property
    def action_on_failure(self) -> str:
        """The step's ActionOnFailure; TERMINATE_JOB_FLOW is the old name of TERMINATE_CLUSTER."""
        action: str = self.config.get("ActionOnFailure", "CONTINUE")
        return "TERMINATE_CLUSTER" if action == "TERMINATE_JOB_FLOW" else action

    def move_to(self, state: str, message: str | None = None, failure: Wire | None = None) -> None:
        """Move to a new state.

        Raises:
            IllegalTransition: the current state does not allow it.
        """
        if state not in STEP_TRANSITIONS[self.state]:
            raise IllegalTransition(f"step {self.id}: {self.state} -> {state}")
        self.state = state
        self.reason = {"Message": message} if message else {}
        self.failure = failure or {}
        if state == "RUNNING":
            self.timeline["StartDateTime"] = now()
        if not STEP_TRANSITIONS[state]:
            self.timeline["EndDateTime"] = now()

    def describe(self) -> Wire:
        """Return the Step of DescribeStep."""
        jar = self.config["HadoopJarStep"]
        status = {"State": self.state, "StateChangeReason": self.reason, "Timeline": self.timeline}
        return {
            "Id": self.id,
            "Name": self.config["Name"],
            "Config": {
                "Jar": jar["Jar"],
                "Properties": {item["Key"]: item["Value"] for item in jar.get("Properties", [])},
                "Args": jar.get("Args", []),
                **({"MainClass": jar["MainClass"]} if "MainClass" in jar else {}),
            },
            "ActionOnFailure": self.action_on_failure,
            "Status": {**status, **({"FailureDetails": self.failure} if self.failure else {})},
            **({"ExecutionRoleArn": self.execution_role_arn} if self.execution_role_arn else {}),
        }


@dataclass
class Cluster:
    """One cluster; `request` is the RunJobFlow request."""

    request: Wire
    region: str
    id: str = field(default_factory=lambda: new_id("j-"))
    state: str = "STARTING"
    reason: Wire = field(default_factory=dict)
    error_details: list[Wire] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    pools: list[Pool] = field(default_factory=list)
    termination_protected: bool = False
    keep_alive: bool = False
    visible_to_all_users: bool = True
    unhealthy_node_replacement: bool = False
    step_concurrency_level: int = 1
    idle_timeout_seconds: int | None = None
    managed_scaling_policy: Wire | None = None
    timeline: Wire = field(default_factory=lambda: {"CreationDateTime": now()})

    def __post_init__(self) -> None:
        self.steps = [Step(config) for config in self.request.get("Steps", [])]
        self.tags = {tag["Key"]: tag.get("Value", "") for tag in self.request.get("Tags", [])}
        self.pools = make_pools(self.id, self.instances)
        self.termination_protected = self.instances.get("TerminationProtected", False)
        # Whether the cluster waits for more steps after its last one.
        self.keep_alive = self.instances.get("KeepJobFlowAliveWhenNoSteps", False)
        self.visible_to_all_users = self.request.get("VisibleToAllUsers", True)
        self.unhealthy_node_replacement = self.instances.get("UnhealthyNodeReplacement", False)
        self.step_concurrency_level = self.request.get("StepConcurrencyLevel", 1)
        self.managed_scaling_policy = self.request.get("ManagedScalingPolicy")
        self.set_idle_timeout(self.request.get("AutoTerminationPolicy"))

    @property
    def instances(self) -> Wire:
        """The Instances of the request."""
        instances: Wire = self.request["Instances"]
        return instances

    @property
    def uses_fleets(self) -> bool:
        """Whether the cluster uses instance fleets; otherwise it uses instance groups."""
        return self.pools[0].is_fleet

    @property
    def ended(self) -> bool:
        """Whether the cluster has ended."""
        return not CLUSTER_TRANSITIONS[self.state]

    @property
    def ending(self) -> bool:
        """Whether the cluster has ended or is terminating."""
        return self.ended or self.state == "TERMINATING"

    @property
    def arn(self) -> str:
        """The cluster's ARN, in moto's account."""
        return f"arn:aws:elasticmapreduce:{self.region}:{DEFAULT_ACCOUNT_ID}:cluster/{self.id}"

    def set_idle_timeout(self, policy: Wire | None) -> None:
        """Apply an AutoTerminationPolicy, or remove it."""
        seconds = None if policy is None else policy.get("IdleTimeout", DEFAULT_IDLE_TIMEOUT_SECONDS)
        self.idle_timeout_seconds = seconds

    def move_to(self, state: str) -> None:
        """Move to a new state; RUNNING and WAITING also set the reason.

        Raises:
            IllegalTransition: the current state does not allow it.
        """
        if state not in CLUSTER_TRANSITIONS[self.state]:
            raise IllegalTransition(f"cluster {self.id}: {self.state} -> {state}")
        self.state = state
        if state in ("RUNNING", "WAITING"):
            self.timeline.setdefault("ReadyDateTime", now())
            self.reason = {"Message": "Running step" if state == "RUNNING" else "Cluster ready to run steps."}
        if self.ended:
            self.timeline["EndDateTime"] = now()

    def status(self) -> Wire:
        """Return the Status of DescribeCluster."""
        return {
            "State": self.state,
            "StateChangeReason": self.reason,
            "Timeline": self.timeline,
            **({"ErrorDetails": self.error_details} if self.error_details else {}),
        }

    def summary(self) -> Wire:
        """Return the ClusterSummary of ListClusters."""
        return {
            "Id": self.id,
            "Name": self.request["Name"],
            "Status": self.status(),
            "NormalizedInstanceHours": 0,
            "ClusterArn": self.arn,
        }

    def describe(self) -> Wire:
        """Return the Cluster of DescribeCluster."""
        copied = (
            *("ReleaseLabel", "ServiceRole", "Configurations", "SecurityConfiguration", "AutoScalingRole"),
            *("ScaleDownBehavior", "EbsRootVolumeSize", "CustomAmiId", "OSReleaseLabel"),
        )
        subnets = [self.instances["Ec2SubnetId"]] if "Ec2SubnetId" in self.instances else []
        subnets = subnets or self.instances.get("Ec2SubnetIds", [])
        groups = (*SECURITY_GROUPS, *ADDITIONAL_SECURITY_GROUPS)
        return {
            **self.summary(),
            **{key: self.request[key] for key in copied if key in self.request},
            # EMR returns the scheme of Hadoop's first S3 file system that did not write blocks.
            **({"LogUri": self.request["LogUri"].replace("s3://", "s3n://", 1)} if "LogUri" in self.request else {}),
            "Ec2InstanceAttributes": {
                "IamInstanceProfile": self.request.get("JobFlowRole", ""),
                "RequestedEc2SubnetIds": subnets,
                **({"Ec2SubnetId": subnets[0]} if subnets else {}),
                **{key: self.instances[key] for key in groups if key in self.instances},
            },
            "InstanceCollectionType": "INSTANCE_FLEET" if self.uses_fleets else "INSTANCE_GROUP",
            "RequestedAmiVersion": "",
            "AutoTerminate": not self.keep_alive,
            "TerminationProtected": self.termination_protected,
            "VisibleToAllUsers": self.visible_to_all_users,
            "UnhealthyNodeReplacement": self.unhealthy_node_replacement,
            "Applications": self.request.get("Applications", []),
            "Tags": [{"Key": key, "Value": value} for key, value in self.tags.items()],
            "MasterPublicDnsName": "localhost",
            "StepConcurrencyLevel": self.step_concurrency_level,
        }

    def list_instances(self, roles: Collection[str] = ()) -> list[Wire]:
        """Return the Instances of ListInstances, for some roles or all."""
        state = {"STARTING": "PROVISIONING", "BOOTSTRAPPING": "BOOTSTRAPPING"}.get(self.state, "RUNNING")
        state = "TERMINATED" if self.ended else state
        pools = [pool for pool in self.pools if not roles or pool.role in roles]
        return [instance for pool in pools for instance in pool.list_instances(state, self.timeline)]

    def list_pools(self) -> list[Wire]:
        """Return the InstanceGroups of ListInstanceGroups, or the InstanceFleets of ListInstanceFleets."""
        states = {"STARTING": "PROVISIONING", "TERMINATED_WITH_ERRORS": "TERMINATED", "WAITING": "RUNNING"}
        return [pool.describe(states.get(self.state, self.state), self.timeline) for pool in self.pools]
