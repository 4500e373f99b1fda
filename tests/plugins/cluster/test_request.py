from dataclasses import replace
from typing import Any

import botocore.session
import pytest

from local_aws.emr.checks import check_parameters
from local_aws.emr.offerings import instance_types, release_labels
from orchard.cluster import request as requests
from orchard.cluster.instances import INSTANCE_TYPES, alternatives, primary_type, smallest_yarn_memory_mib
from orchard.cluster.memory import executor_memory
from orchard.cluster.request import (
    ClusterSpec,
    instance_fleets,
    keeps_notebooks,
    requested_instances,
    requested_workers,
    run_job_flow_request,
    security_groups,
    spot_instances,
)
from orchard.cluster.sizing import Workers
from orchard.settings import Settings

SETTINGS = Settings(bucket="fruits-data", release="0123456789ab")


def spec(instance_type: str = "m5.xlarge", core_instances: int = 2, task_instances: int = 0) -> ClusterSpec:
    return ClusterSpec(
        name="orchard-fruits",
        instance_type=instance_type,
        core_instances=core_instances,
        task_instances=task_instances,
        tags={"orchard:owner": "me"},
    )


def properties(request: dict[str, Any], classification: str) -> dict[str, str]:
    (found,) = [item for item in request["Configurations"] if item["Classification"] == classification]
    values: dict[str, str] = found["Properties"]
    return values


@pytest.mark.parametrize("instance_type", INSTANCE_TYPES)
def test_the_request_is_valid_for_emr(instance_type: str) -> None:
    model = botocore.session.get_session().get_service_model("emr").operation_model("RunJobFlow")
    check_parameters(model, run_job_flow_request(spec(instance_type), SETTINGS))


def test_a_request_without_a_hold_has_nothing_of_it() -> None:
    request = run_job_flow_request(spec(), SETTINGS)
    assert request["Applications"] == [{"Name": "Spark"}]
    assert [item["Classification"] for item in request["Configurations"]] == ["spark-defaults", "spark-env"]
    assert request["AutoTerminationPolicy"] == {"IdleTimeout": 15 * 60}
    assert not keeps_notebooks(request)


def test_a_cluster_that_is_held_has_jupyterhub_and_keeps_its_notebooks_in_the_bucket() -> None:
    request = run_job_flow_request(replace(spec(), hold_minutes=60), SETTINGS)
    assert request["Applications"] == [{"Name": "Spark"}, {"Name": "JupyterHub"}]
    assert properties(request, "jupyter-s3-conf") == {
        "s3.persistence.enabled": "true",
        "s3.persistence.bucket": "fruits-data/notebooks",
    }
    assert request["AutoTerminationPolicy"] == {"IdleTimeout": 75 * 60}, "idleness does not end the hold"
    assert keeps_notebooks(request)


@pytest.mark.parametrize(
    ("requested", "types"),
    [
        ("m5.xlarge", ["m5.xlarge", "m6i.xlarge", "m7i.xlarge"]),
        ("m7i.xlarge", ["m7i.xlarge", "m5.xlarge", "m6i.xlarge"]),
        ("c7i.xlarge", ["c7i.xlarge", "c6i.xlarge"]),
        ("m7g.2xlarge", ["m7g.2xlarge"]),
    ],
)
def test_every_fleet_has_the_types_of_its_size_and_starts_the_requested_one_first(
    requested: str, types: list[str]
) -> None:
    fleets = instance_fleets(run_job_flow_request(spec(requested, 3), SETTINGS))
    assert [fleet["TargetOnDemandCapacity"] for fleet in fleets] == [1, 3]
    for fleet, expected in zip(fleets, (alternatives(primary_type(requested)), types), strict=True):
        configs = sorted(fleet["InstanceTypeConfigs"], key=lambda config: config["Priority"])
        assert [config["InstanceType"] for config in configs] == expected
        assert len({config["Priority"] for config in configs}) == len(expected)
        assert fleet["LaunchSpecifications"] == {"OnDemandSpecification": {"AllocationStrategy": "prioritized"}}


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_an_alternative_has_the_cores_and_the_memory_that_the_configuration_expects(name: str) -> None:
    for other in alternatives(name):
        kinds = INSTANCE_TYPES[name], INSTANCE_TYPES[other]
        assert kinds[0].vcpus == kinds[1].vcpus
        assert kinds[0].memory_gib == kinds[1].memory_gib
        assert executor_memory(name) == executor_memory(other)


def test_every_release_with_python_311_supports_every_alternative() -> None:
    # An unsupported alternative would make EMR refuse clusters of a type that it supports.
    labels = [label for label in release_labels("eu-west-1") if label.startswith("emr-7.") and label >= "emr-7.1"]
    assert len(labels) > 5
    for label in labels:
        assert INSTANCE_TYPES.keys() <= set(instance_types(label)), label


def test_each_core_of_a_worker_is_one_task_slot() -> None:
    assert spec("m5.xlarge", 3).task_slots == 12


def test_the_cluster_waits_for_steps_and_terminates_itself_when_it_is_idle() -> None:
    request = run_job_flow_request(spec(), SETTINGS)
    assert request["Instances"]["KeepJobFlowAliveWhenNoSteps"] is True
    assert request["AutoTerminationPolicy"] == {"IdleTimeout": 15 * 60}


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_an_executor_and_the_application_master_fit_on_one_worker(name: str) -> None:
    defaults = properties(run_job_flow_request(spec(name), SETTINGS), "spark-defaults")
    assert defaults["spark.submit.deployMode"] == "client", "so that YARN runs the application master, not the driver"

    def mib(key: str, default: float = 0) -> float:
        return int(defaults[key].removesuffix("m")) if key in defaults else default

    # Spark's defaults: https://spark.apache.org/docs/3.5.8/running-on-yarn.html
    master_mib = mib("spark.yarn.am.memory", 512)
    master_mib += mib("spark.yarn.am.memoryOverhead", max(384, 0.10 * master_mib))
    executor_mib = mib("spark.executor.memory") + mib("spark.executor.memoryOverhead")
    yarn_mib = smallest_yarn_memory_mib(alternatives(name))
    assert executor_mib + master_mib <= yarn_mib
    assert executor_mib == yarn_mib - 1024, "the rest of a node would be idle"
    assert int(defaults["spark.executor.cores"]) <= INSTANCE_TYPES[name].vcpus


def test_the_steps_use_the_python_that_the_bootstrap_action_installs() -> None:
    request = run_job_flow_request(spec(), SETTINGS)
    (action,) = request["BootstrapActions"]
    arguments = action["ScriptBootstrapAction"]["Args"]
    prefix = arguments[arguments.index("--prefix") + 1]
    assert properties(request, "spark-defaults")["spark.pyspark.python"] == f"{prefix}/venv/bin/python"
    assert action["ScriptBootstrapAction"]["Path"].startswith(SETTINGS.release_uri)


def test_subnets_and_security_configuration_are_sent_only_if_they_are_set() -> None:
    minimal = run_job_flow_request(spec(), SETTINGS)
    assert "Ec2SubnetIds" not in minimal["Instances"]
    assert "SecurityConfiguration" not in minimal
    settings = Settings(
        bucket="fruits-data", release="1", subnet_ids=("subnet-a", "subnet-b"), security_configuration="s"
    )
    full = run_job_flow_request(spec(), settings)
    assert full["Instances"]["Ec2SubnetIds"] == ["subnet-a", "subnet-b"]
    assert full["SecurityConfiguration"] == "s"


def test_security_groups_are_sent_only_if_they_are_set_and_read_from_the_request() -> None:
    assert security_groups(run_job_flow_request(spec(), SETTINGS)) == {}
    groups: dict[str, Any] = {"primary_security_group": f"sg-{'1' * 17}", "core_security_group": f"sg-{'2' * 17}"}
    request = run_job_flow_request(spec(), replace(SETTINGS, **groups))
    assert request["Instances"]["EmrManagedMasterSecurityGroup"] == f"sg-{'1' * 17}"
    assert request["Instances"]["EmrManagedSlaveSecurityGroup"] == f"sg-{'2' * 17}"
    assert security_groups(request) == groups
    in_private_subnet = {**groups, "service_security_group": f"sg-{'3' * 17}"}
    request = run_job_flow_request(spec(), replace(SETTINGS, **in_private_subnet))
    assert request["Instances"]["ServiceAccessSecurityGroup"] == f"sg-{'3' * 17}"
    assert security_groups(request) == in_private_subnet


def test_an_unknown_instance_type_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match=r"'t3\.nano': choose from m5\.xlarge, "):
        spec("t3.nano")


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_task_instances_are_a_fleet_on_spot_of_all_types_of_the_size(name: str) -> None:
    request = run_job_flow_request(spec(name, 1, 3), SETTINGS)
    *_, task = instance_fleets(request)
    assert (task["InstanceFleetType"], task["TargetSpotCapacity"], task["TargetOnDemandCapacity"]) == ("TASK", 3, 0)
    assert task["LaunchSpecifications"] == {
        "SpotSpecification": {
            "AllocationStrategy": "price-capacity-optimized",
            "TimeoutDurationMinutes": requests.SPOT_TIMEOUT_MINUTES,
            "TimeoutAction": "SWITCH_TO_ON_DEMAND",
        },
        # For the On-Demand instances that replace missing Spot capacity.
        "OnDemandSpecification": {"AllocationStrategy": "prioritized"},
    }
    assert [config["InstanceType"] for config in task["InstanceTypeConfigs"]] == alternatives(name)
    # Orchard knows one Graviton type of each size and memory.
    assert len(task["InstanceTypeConfigs"]) > (0 if INSTANCE_TYPES[name].architecture == "aarch64" else 1)
    assert not any(key.startswith("BidPrice") for config in task["InstanceTypeConfigs"] for key in config)
    assert (requested_instances(request), spot_instances(request)) == (5, 3)


def test_the_primary_and_the_core_instances_are_on_demand_whatever_the_number_of_task_instances() -> None:
    for task_instances in (0, 3):
        primary, core, *_ = instance_fleets(run_job_flow_request(spec(task_instances=task_instances), SETTINGS))
        assert primary["TargetOnDemandCapacity"] == 1
        assert core["TargetOnDemandCapacity"] == 2
        assert "TargetSpotCapacity" not in {**primary, **core}


def test_a_cluster_without_task_instances_has_no_setting_for_spot() -> None:
    request = run_job_flow_request(spec(), SETTINGS)
    assert len(instance_fleets(request)) == 2
    assert spot_instances(request) == 0
    assert not [item for item in request["Configurations"] if item["Classification"] == "yarn-site"]
    assert "spark.task.maxFailures" not in properties(request, "spark-defaults")


def test_the_application_master_runs_on_core_nodes_only() -> None:
    assert properties(run_job_flow_request(spec("m5.xlarge", 1, 3), SETTINGS), "yarn-site") == {
        "yarn.node-labels.enabled": "true",
        "yarn.node-labels.am.default-node-label-expression": "CORE",
    }


def test_all_workers_are_task_slots() -> None:
    with_spot = spec("m5.xlarge", 1, 3)
    assert with_spot.task_slots == 16
    defaults = properties(run_job_flow_request(with_spot, SETTINGS), "spark-defaults")
    assert defaults["spark.default.parallelism"] == "16"


def test_a_negative_number_of_task_instances_is_refused() -> None:
    with pytest.raises(ValueError, match="task_instances is -1: use 0 or more"):
        spec(task_instances=-1)


def test_a_cluster_without_a_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="core_instances is 0"):
        spec(core_instances=0)


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_primary_node_has_the_smallest_type_of_the_family_of_the_workers(name: str) -> None:
    primary, core = instance_fleets(run_job_flow_request(spec(name), SETTINGS))
    first = primary["InstanceTypeConfigs"][0]["InstanceType"]
    assert first == f"{name.partition('.')[0]}.xlarge"
    assert core["InstanceTypeConfigs"][0]["InstanceType"] == name
    assert INSTANCE_TYPES[first].architecture == INSTANCE_TYPES[name].architecture


def test_the_workers_of_a_request_are_those_of_its_cluster() -> None:
    for task_instances in (0, 3):
        request = run_job_flow_request(spec("m5.xlarge", 2, task_instances), SETTINGS)
        assert requested_workers(request) == Workers(2, task_instances)
    assert requested_workers({"Instances": {"InstanceCount": 3}}) is None
    assert requested_workers({}) is None
