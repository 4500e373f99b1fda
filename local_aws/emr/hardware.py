"""Instance groups and instance fleets. They are listed as requested, but all of them represent this machine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Wire = dict[str, Any]


@dataclass
class Pool:
    """An instance group or an instance fleet; `config` is its InstanceGroupConfig or InstanceFleetConfig."""

    cluster_id: str
    number: int
    is_fleet: bool
    config: Wire = field(default_factory=dict)

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
        weight = max(1, self.launched.get("WeightedCapacity", 1))
        on_demand, spot = (
            -(-self.config.get(key, 0) // weight) for key in ("TargetOnDemandCapacity", "TargetSpotCapacity")
        )
        return ["ON_DEMAND"] * on_demand + ["SPOT"] * spot

    def describe(self, state: str, timeline: Wire) -> Wire:
        """Return the InstanceGroup of ListInstanceGroups, or the InstanceFleet of ListInstanceFleets."""
        status = {"State": state, "StateChangeReason": {}, "Timeline": timeline}
        copied = ("Name", "BidPrice", "Configurations", "CustomAmiId", "LaunchSpecifications", "ResizeSpecifications")
        common = {"Id": self.id, "Status": status, **{key: self.config[key] for key in copied if key in self.config}}
        running = state == "RUNNING"
        if self.is_fleet:
            capacity = {kind: self.config.get(f"Target{kind}Capacity", 0) for kind in ("OnDemand", "Spot")}
            return {
                **common,
                "InstanceFleetType": self.role,
                **{f"Target{kind}Capacity": units for kind, units in capacity.items()},
                **{f"Provisioned{kind}Capacity": units if running else 0 for kind, units in capacity.items()},
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
        """Return the Instances of ListInstances."""
        return [
            {
                "Id": f"ci-{self.cluster_id[2:]}{self.number}{index}",
                "Ec2InstanceId": f"i-{self.cluster_id[2:].lower()}{self.number}{index}",
                "PrivateIpAddress": "127.0.0.1",
                "PrivateDnsName": "localhost",
                "Status": {"State": state, "StateChangeReason": {}, "Timeline": timeline},
                "InstanceFleetId" if self.is_fleet else "InstanceGroupId": self.id,
                "Market": market,
                "InstanceType": self.launched.get("InstanceType", ""),
            }
            for index, market in enumerate(self.markets)
        ]


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
