from typing import Any

import botocore.session
import pytest

from local_aws.emr.checks import check_parameters
from orchard.cluster import INSTANCE_TYPES, ClusterSpec, run_job_flow_request
from orchard.settings import Settings

SETTINGS = Settings(bucket="fruits-data", release="0123456789ab")


def spec(instance_type: str = "m5.xlarge", core_instances: int = 2) -> ClusterSpec:
    return ClusterSpec(
        name="orchard-fruits", instance_type=instance_type, core_instances=core_instances, tags={"orchard:owner": "me"}
    )


def properties(request: dict[str, Any], classification: str) -> dict[str, str]:
    (found,) = [item for item in request["Configurations"] if item["Classification"] == classification]
    values: dict[str, str] = found["Properties"]
    return values


@pytest.mark.parametrize("instance_type", INSTANCE_TYPES)
def test_the_request_is_valid_for_emr(instance_type: str) -> None:
    model = botocore.session.get_session().get_service_model("emr").operation_model("RunJobFlow")
    check_parameters(model, run_job_flow_request(spec(instance_type), SETTINGS))


def test_the_cluster_costs_what_all_its_nodes_cost() -> None:
    assert spec("m5.xlarge", 2).usd_per_hour == pytest.approx(3 * 0.262)


def test_each_core_of_a_worker_is_a_task_slot() -> None:
    assert spec("m5.xlarge", 3).task_slots == 12


def test_the_cluster_waits_for_steps_and_ends_by_itself_when_it_idles() -> None:
    request = run_job_flow_request(spec(), SETTINGS)
    assert request["Instances"]["KeepJobFlowAliveWhenNoSteps"] is True
    assert request["AutoTerminationPolicy"] == {"IdleTimeout": 15 * 60}


def test_executor_and_python_fit_into_the_smallest_worker() -> None:
    defaults = properties(run_job_flow_request(spec("c6i.xlarge"), SETTINGS), "spark-defaults")
    mib = sum(int(defaults[f"spark.executor.{name}"].removesuffix("m")) for name in ("memory", "memoryOverhead"))
    assert mib <= 8 * 1024 * 3 // 4


def test_the_steps_use_the_python_that_the_bootstrap_action_makes() -> None:
    request = run_job_flow_request(spec(), SETTINGS)
    (action,) = request["BootstrapActions"]
    arguments = action["ScriptBootstrapAction"]["Args"]
    prefix = arguments[arguments.index("--prefix") + 1]
    assert properties(request, "spark-defaults")["spark.pyspark.python"] == f"{prefix}/venv/bin/python"
    assert action["ScriptBootstrapAction"]["Path"].startswith(SETTINGS.release_uri)


def test_subnets_and_security_configuration_are_only_sent_when_set() -> None:
    bare = run_job_flow_request(spec(), SETTINGS)
    assert "Ec2SubnetIds" not in bare["Instances"]
    assert "SecurityConfiguration" not in bare
    settings = Settings(
        bucket="fruits-data", release="1", subnet_ids=("subnet-a", "subnet-b"), security_configuration="s"
    )
    full = run_job_flow_request(spec(), settings)
    assert full["Instances"]["Ec2SubnetIds"] == ["subnet-a", "subnet-b"]
    assert full["SecurityConfiguration"] == "s"


def test_an_unknown_instance_type_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match=r"'t3\.nano': choose from m5\.xlarge, "):
        spec("t3.nano")


def test_a_cluster_without_a_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="core_instances is 0"):
        spec(core_instances=0)
