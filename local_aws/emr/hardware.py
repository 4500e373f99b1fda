"""Instance groups and instance fleets. They are listed as requested, but all of them represent this machine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Wire = dict[str, Any]

# EC2's StateReason after a Spot interruption: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html
SPOT_INTERRUPTION: Final = "Server.SpotInstanceTermination: Spot instance termination"


@dataclass
class Replacement:
    """The instance in the place of an interrupted one; `number` counts the instances that had this place before."""

    number: int
    created: datetime
    ready: datetime

    def state(self, state: str) -> str:
        """Return the state of the instance. `state` is the state of the other instances."""
        return "PROVISIONING" if state == "RUNNING" and datetime.now(UTC) < self.ready else state

    def timeline(self, timeline: Wire) -> Wire:
        """Return the Timeline of the instance. `timeline` is the Timeline of its cluster."""
        end = {key: value for key, value in timeline.items() if key == "EndDateTime"}
        ready = {"ReadyDateTime": self.ready} if datetime.now(UTC) >= self.ready else {}
        return {"CreationDateTime": self.created, **ready, **end}


@dataclass
class Pool:
    """An instance group or an instance fleet; `config` is its InstanceGroupConfig or InstanceFleetConfig.

    `spot_limit` is the number of Spot instances that EC2 has for a fleet, None if it has enough. If `switched`, the
    fleet has On-Demand instances in place of the missing ones. `interrupted` are the Instances of ListInstances that
    EC2 has terminated, and `replacements` are the instances in their places.
    """

    cluster_id: str
    number: int
    is_fleet: bool
    config: Wire = field(default_factory=dict)
    spot_limit: int | None = None
    switched: bool = False
    interrupted: list[Wire] = field(default_factory=list)
    replacements: dict[int, Replacement] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The id, derived from the cluster id so that it never changes."""
        return f"{'if' if self.is_fleet else 'ig'}-{self.cluster_id[2:]}{self.number}"

    @property
    def role(self) -> str:
        """The role: MASTER, CORE or TASK."""
        role: str = self.config["InstanceFleetType" if self.is_fleet else "InstanceRole"]
        return role

    @property
    def types(self) -> list[str]:
        """The instance types that the request allows."""
        configs = self.config.get("InstanceTypeConfigs", []) if self.is_fleet else [self.config]
        return [config["InstanceType"] for config in configs if config.get("InstanceType")]

    @property
    def launched(self) -> Wire:
        """The InstanceTypeConfig or InstanceGroupConfig of the instances. EC2 never lacks capacity for it here.

        That is the highest priority, 0 first, if the On-Demand allocation strategy is prioritized, else the first one.
        """
        if not self.is_fleet:
            return self.config
        configs: list[Wire] = self.config.get("InstanceTypeConfigs") or [{}]
        on_demand = self.config.get("LaunchSpecifications", {}).get("OnDemandSpecification", {})
        if on_demand.get("AllocationStrategy") != "prioritized":
            return configs[0]
        return min(configs, key=lambda config: float(config.get("Priority", "inf")))

    @property
    def markets(self) -> list[str]:
        """The market of each instance. A fleet has as many instances of one type as fill its capacity."""
        if not self.is_fleet:
            return [self.config.get("Market", "ON_DEMAND")] * int(self.config.get("InstanceCount", 1))
        on_demand, spot = self._wanted
        lacking = self.lacking_spot
        return ["ON_DEMAND"] * on_demand + ["SPOT"] * (spot - lacking) + ["ON_DEMAND"] * (lacking * self.switched)

    @property
    def lacking_spot(self) -> int:
        """The number of Spot instances of a fleet that EC2 does not have."""
        _, spot = self._wanted
        return 0 if self.spot_limit is None else max(0, spot - self.spot_limit)

    @property
    def timeout_action(self) -> str:
        """What EMR does if EC2 lacks Spot capacity: SWITCH_TO_ON_DEMAND or TERMINATE_CLUSTER."""
        specification = self.config.get("LaunchSpecifications", {}).get("SpotSpecification", {})
        action: str = specification.get("TimeoutAction", "TERMINATE_CLUSTER")
        return action

    @property
    def _weight(self) -> int:
        return max(1, int(self.launched.get("WeightedCapacity", 1)))

    @property
    def _wanted(self) -> tuple[int, int]:
        """The number of On-Demand and of Spot instances that fill the capacity of a fleet."""
        targets = (self.config.get(key, 0) for key in ("TargetOnDemandCapacity", "TargetSpotCapacity"))
        on_demand, spot = (-(-target // self._weight) for target in targets)
        return on_demand, spot

    def interrupt(self, timeline: Wire, replace_seconds: float) -> list[str]:
        """Terminate the Spot instances that run, as EC2 does, and return their ids.

        Others take their places. They are PROVISIONING for `replace_seconds`.
        """
        now = datetime.now(UTC)
        taken = [
            (place, instance)
            for place, instance in enumerate(self._instances("RUNNING", timeline))
            if instance["Market"] == "SPOT" and instance["Status"]["State"] == "RUNNING"
        ]
        for place, instance in taken:
            message = f"Instance {instance['Ec2InstanceId']} was terminated. {SPOT_INTERRUPTION}"
            status = {
                "State": "TERMINATED",
                "StateChangeReason": {"Code": "INSTANCE_FAILURE", "Message": message},
                "Timeline": {**instance["Status"]["Timeline"], "EndDateTime": now},
            }
            self.interrupted.append({**instance, "Status": status})
            earlier = self.replacements[place].number if place in self.replacements else 0
            ready = now + timedelta(seconds=replace_seconds)
            self.replacements[place] = Replacement(earlier + 1, now, ready)
        return [instance["Ec2InstanceId"] for _, instance in taken]

    def describe(self, state: str, timeline: Wire) -> Wire:
        """Return the InstanceGroup of ListInstanceGroups, or the InstanceFleet of ListInstanceFleets."""
        status = {"State": state, "StateChangeReason": {}, "Timeline": timeline}
        copied = ("Name", "BidPrice", "Configurations", "CustomAmiId", "LaunchSpecifications", "ResizeSpecifications")
        common = {"Id": self.id, "Status": status, **{key: self.config[key] for key in copied if key in self.config}}
        running = state == "RUNNING"
        if self.is_fleet:
            capacity = {kind: self.config.get(f"Target{kind}Capacity", 0) for kind in ("OnDemand", "Spot")}
            missing = min(self.lacking_spot * self._weight, capacity["Spot"])
            provisioned = {
                "OnDemand": capacity["OnDemand"] + missing * self.switched,
                "Spot": capacity["Spot"] - missing,
            }
            return {
                **common,
                "InstanceFleetType": self.role,
                **{f"Target{kind}Capacity": units for kind, units in capacity.items()},
                **{f"Provisioned{kind}Capacity": units if running else 0 for kind, units in provisioned.items()},
                "InstanceTypeSpecifications": [
                    {key: value for key, value in config.items() if key != "EbsConfiguration"}
                    for config in self.config.get("InstanceTypeConfigs", [])
                ],
            }
        count = self.config.get("InstanceCount", 1)
        return {
            **common,
            "Market": self.config.get("Market", "ON_DEMAND"),
            "InstanceGroupType": self.role,
            **({"InstanceType": self.types[0]} if self.types else {}),
            "RequestedInstanceCount": count,
            "RunningInstanceCount": count if running else 0,
            "ShrinkPolicy": self.config.get("ShrinkPolicy", {}),
        }

    def list_instances(self, state: str, timeline: Wire) -> list[Wire]:
        """Return the Instances of ListInstances, with those that EC2 has terminated."""
        return [*self.interrupted, *self._instances(state, timeline)]

    def _instances(self, state: str, timeline: Wire) -> list[Wire]:
        """Return the instances in all places."""
        return [self._instance(place, market, state, timeline) for place, market in enumerate(self.markets)]

    def _instance(self, place: int, market: str, state: str, timeline: Wire) -> Wire:
        replacement = self.replacements.get(place)
        suffix = f"{self.number}{place}"
        if replacement is not None:
            suffix += f"r{replacement.number}"
            state, timeline = replacement.state(state), replacement.timeline(timeline)
        return {
            "Id": f"ci-{self.cluster_id[2:]}{suffix}",
            "Ec2InstanceId": f"i-{self.cluster_id[2:].lower()}{suffix}",
            "PrivateIpAddress": "127.0.0.1",
            "PrivateDnsName": "localhost",
            "Status": {"State": state, "StateChangeReason": {}, "Timeline": timeline},
            "InstanceFleetId" if self.is_fleet else "InstanceGroupId": self.id,
            "Market": market,
            "InstanceType": self.launched.get("InstanceType", ""),
        }


def make_pools(cluster_id: str, instances: Wire) -> list[Pool]:
    """Return the groups or fleets of the Instances of a RunJobFlow request.

    Instead of groups or fleets, Instances can have two instance types and a count. These become groups.
    """
    if instances.get("InstanceFleets"):
        return number_pools(cluster_id, instances["InstanceFleets"], is_fleet=True)
    if instances.get("InstanceGroups"):
        return number_pools(cluster_id, instances["InstanceGroups"], is_fleet=False)
    groups = [("MASTER", instances.get("MasterInstanceType"), 1)]
    count = instances.get("InstanceCount", 1)
    if count > 1:
        groups.append(("CORE", instances.get("SlaveInstanceType"), count - 1))
    configs = [{"InstanceRole": role, "InstanceType": kind, "InstanceCount": number} for role, kind, number in groups]
    return number_pools(cluster_id, configs, is_fleet=False)


def number_pools(cluster_id: str, configs: Iterable[Wire], *, is_fleet: bool, first: int = 0) -> list[Pool]:
    """Return pools with these configs, numbered from `first`. They hold copies, because pools change."""
    return [Pool(cluster_id, number, is_fleet, dict(config)) for number, config in enumerate(configs, start=first)]


def executor_types(pools: Sequence[Pool]) -> set[str]:
    """Return the instance types that run executors: those of core and task nodes, or of a master without any."""
    workers = [pool for pool in pools if pool.role != "MASTER" and pool.markets]
    return {kind for pool in workers or pools for kind in pool.types}
