from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

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
SETTINGS = Settings(bucket="fruits-data", release="0123456789ab")


def configs(params: RunParams = PARAMS, run_uri: str = "s3://out/run") -> list[dict[str, Any]]:
    return step_configs(RELEASE, SETTINGS, params, run_uri=run_uri, scratch_uri="s3://out/scratch")


CONFIGS = configs()


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
@pytest.mark.parametrize("pca_mode", ["refit", "frozen"])
def test_the_params_of_the_run_are_arguments_of_its_steps(n_components: float, pca_mode: str) -> None:
    params = replace(PARAMS, max_reject_ratio=0.25, max_pixels=500, n_components=n_components, pca_mode=pca_mode)
    arguments = [config["HadoopJarStep"]["Args"][4:] for config in configs(params)]
    run, scratch, warehouse = (
        ["--run-uri", "s3://out/run"],
        ["--scratch-uri", "s3://out/scratch"],
        SETTINGS.warehouse_uri,
    )
    assert arguments == [
        [*run, *scratch, "--max-reject-ratio", "0.25", "--max-pixels", "500"],
        [*run, *scratch, "--warehouse-uri", warehouse, "--model-uri", RELEASE.model_uri],
        [*run, "--warehouse-uri", warehouse, "--n-components", str(n_components), "--pca-mode", pca_mode],
    ]


def test_the_programs_of_the_steps_take_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, tuple[object, ...]] = {}
    for program in (ingest, features, pca):
        monkeypatch.setattr(program, "run", lambda *values, name=program.__name__: taken.update({name: values}))
    params = replace(PARAMS, max_reject_ratio=0.25, max_pixels=500, n_components=3, pca_mode="frozen")
    for program, config in zip((ingest, features, pca), configs(params), strict=True):
        program.main(config["HadoopJarStep"]["Args"][4:])
    assert taken == {
        "ingest": ("s3://out/run", "s3://out/scratch", 0.25, 500),
        "features": ("s3://out/run", "s3://out/scratch", SETTINGS.warehouse_uri, RELEASE.model_uri),
        "pca": ("s3://out/run", SETTINGS.warehouse_uri, 3.0, "frozen"),
    }


def test_a_failed_step_leaves_the_cluster_to_the_teardown() -> None:
    assert {config["ActionOnFailure"] for config in CONFIGS} == {"CANCEL_AND_WAIT"}


def test_the_timeout_of_a_step_is_a_setting() -> None:
    settings = replace(SETTINGS, pca_timeout_minutes=7)
    timeouts = [step_timeout(settings, name) for name in STEPS]
    assert timeouts == [timedelta(hours=2), timedelta(hours=6), timedelta(minutes=7)]


def test_arguments_that_are_too_long_for_emr_are_a_permanent_error() -> None:
    with pytest.raises(
        ArgumentsTooLong, match=r"step ingest have 10,\d\d\d characters, and EMR's limit is 10,240"
    ) as error:
        configs(run_uri=f"s3://out/{'x' * 10_240}")
    assert isinstance(error.value, PermanentError)
