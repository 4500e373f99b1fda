from datetime import timedelta
from pathlib import Path

import botocore.session
import pytest

from local_aws.emr.checks import check_parameters
from orchard.settings import Settings
from orchard.steps import Stage, spark_step, stages

RELEASE_URI = "s3://fruits-data/releases/0123456789ab"
SETTINGS = Settings(bucket="fruits-data", release="0123456789ab", pca_timeout_minutes=7)
STAGES = stages(SETTINGS, input_uri="s3://in/", run_uri="s3://out/run", model_uri="s3://out/model.tflite")


def test_the_steps_are_valid_for_emr() -> None:
    model = botocore.session.get_session().get_service_model("emr").operation_model("AddJobFlowSteps")
    steps = [spark_step(stage, release_uri=RELEASE_URI) for stage in STAGES]
    check_parameters(model, {"JobFlowId": "j-1", "Steps": steps})


def test_each_step_is_a_spark_program_of_the_release() -> None:
    programs = Path(__file__).parents[2] / "spark"
    for stage in STAGES:
        arguments = spark_step(stage, release_uri=RELEASE_URI)["HadoopJarStep"]["Args"]
        assert f"{RELEASE_URI}/spark/{stage.name}.py" in arguments
        assert (programs / f"{stage.name}.py").is_file()


def test_a_failed_step_leaves_the_cluster_to_the_teardown() -> None:
    actions = {spark_step(stage, release_uri=RELEASE_URI)["ActionOnFailure"] for stage in STAGES}
    assert actions == {"CANCEL_AND_WAIT"}


def test_the_time_for_a_step_is_a_setting() -> None:
    assert [stage.timeout for stage in STAGES] == [timedelta(hours=2), timedelta(hours=6), timedelta(minutes=7)]


def test_arguments_longer_than_emr_takes_are_refused() -> None:
    stage = Stage(name="ingest", arguments=("x" * 10_240,), timeout=timedelta(hours=1))
    with pytest.raises(ValueError, match=r"step ingest have 10\d\d\d characters; EMR takes 10,240"):
        spark_step(stage, release_uri=RELEASE_URI)
