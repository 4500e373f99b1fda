from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import botocore.session
import pytest

import features
import ingest
import pca
from local_aws.emr.checks import check_parameters
from orchard.errors import PermanentError
from orchard.release import Release
from orchard.run.params import RunParams
from orchard.run.steps import STEPS, ArgumentsTooLong, step_configs, step_timeout
from orchard.settings import Settings
from tests.plugins.plans import DEFAULT_PARAMS

RELEASE = Release("s3://fruits-data/releases/0123456789ab", "model/mobilenet.tflite", {})
PARAMS = RunParams.parse({"dataset_uri": "s3://inputs/", **DEFAULT_PARAMS})
CONFIGS = step_configs(RELEASE, run_uri="s3://out/run", params=PARAMS)


def test_the_steps_are_valid_for_emr() -> None:
    model = botocore.session.get_session().get_service_model("emr").operation_model("AddJobFlowSteps")
    check_parameters(model, {"JobFlowId": "j-1", "Steps": CONFIGS})


def test_each_step_is_a_spark_program_of_the_release() -> None:
    programs = Path(__file__).parents[3] / "spark"
    for name, config in zip(STEPS, CONFIGS, strict=True):
        assert config["Name"] == name
        assert f"{RELEASE.uri}/spark/{name}.py" in config["HadoopJarStep"]["Args"]
        assert (programs / f"{name}.py").is_file()


@pytest.mark.parametrize("n_components", [0.95, 3])
def test_the_params_of_the_run_are_arguments_of_its_steps(n_components: float) -> None:
    params = replace(PARAMS, max_reject_ratio=0.25, max_bytes=1000, max_pixels=500, n_components=n_components)
    ingest, _, pca = step_configs(RELEASE, run_uri="s3://out/run", params=params)
    assert ingest["HadoopJarStep"]["Args"][-10:] == [
        *("--input-uri", "s3://inputs/"),
        *("--run-uri", "s3://out/run"),
        *("--max-reject-ratio", "0.25"),
        *("--max-bytes", "1000"),
        *("--max-pixels", "500"),
    ]
    assert pca["HadoopJarStep"]["Args"][-2:] == ["--n-components", str(n_components)]


def test_the_programs_of_the_steps_take_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, tuple[object, ...]] = {}
    for program in (ingest, features, pca):
        monkeypatch.setattr(program, "run", lambda *values, name=program.__name__: taken.update({name: values}))
    params = replace(PARAMS, max_reject_ratio=0.25, max_bytes=1000, max_pixels=500, n_components=3)
    configs = step_configs(RELEASE, run_uri="s3://out/run", params=params)
    for program, config in zip((ingest, features, pca), configs, strict=True):
        program.main(config["HadoopJarStep"]["Args"][4:])
    assert taken == {
        "ingest": ("s3://inputs/", "s3://out/run", 0.25, 500, 1000),
        "features": ("s3://out/run", RELEASE.model_uri),
        "pca": ("s3://out/run", 3.0),
    }


def test_a_failed_step_leaves_the_cluster_to_the_teardown() -> None:
    assert {config["ActionOnFailure"] for config in CONFIGS} == {"CANCEL_AND_WAIT"}


def test_the_timeout_of_a_step_is_a_setting() -> None:
    settings = Settings(bucket="fruits-data", release="0123456789ab", pca_timeout_minutes=7)
    timeouts = [step_timeout(settings, name) for name in STEPS]
    assert timeouts == [timedelta(hours=2), timedelta(hours=6), timedelta(minutes=7)]


def test_arguments_that_are_too_long_for_emr_are_a_permanent_error() -> None:
    params = replace(PARAMS, dataset_uri=f"s3://inputs/{'x' * 10_240}/")
    with pytest.raises(
        ArgumentsTooLong, match=r"step ingest have 10,\d\d\d characters, and EMR's limit is 10,240"
    ) as error:
        step_configs(RELEASE, run_uri="s3://out/run", params=params)
    assert isinstance(error.value, PermanentError)
