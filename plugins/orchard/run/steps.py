"""The three Spark steps of a run, as EMR step requests."""

from datetime import timedelta
from typing import Any

from orchard.errors import PermanentError
from orchard.release import Release
from orchard.run.params import RunParams
from orchard.settings import Settings

STEPS = ("ingest", "features", "pca")
# EMR's limit: https://docs.aws.amazon.com/emr/latest/APIReference/API_HadoopJarStepConfig.html
MAX_ARGUMENT_CHARACTERS = 10_240


class ArgumentsTooLong(PermanentError):
    """The arguments of a step are longer than EMR's limit."""

    def __init__(self, name: str, characters: int) -> None:
        super().__init__(
            f"the arguments of step {name} have {characters:,} characters, and EMR's limit is "
            f"{MAX_ARGUMENT_CHARACTERS:,}: use a shorter dataset_uri"
        )


def step_timeout(settings: Settings, name: str) -> timedelta:
    """Return how long a step may take: its setting ORCHARD_<STEP>_TIMEOUT_MINUTES."""
    return timedelta(minutes=getattr(settings, f"{name}_timeout_minutes"))


def step_configs(
    release: Release, settings: Settings, params: RunParams, *, run_uri: str, scratch_uri: str
) -> list[dict[str, Any]]:
    """Return the StepConfig of each step, in the order of STEPS, with the code and the model of a release.

    Raises:
        ArgumentsTooLong: the arguments of a step are longer than EMR's limit.
    """
    run, scratch = ["--run-uri", run_uri], ["--scratch-uri", scratch_uri]
    warehouse = ["--warehouse-uri", settings.warehouse_uri]
    limits = ["--max-reject-ratio", str(params.max_reject_ratio), "--max-pixels", str(params.max_pixels)]
    basis = ["--n-components", str(params.n_components), "--pca-mode", params.pca_mode]
    options = {
        "ingest": [*run, *scratch, *limits],
        "features": [*run, *scratch, *warehouse, "--model-uri", release.model_uri],
        "pca": [*run, *warehouse, *basis],
    }
    return [_step_config(name, release, options[name]) for name in STEPS]


def _step_config(name: str, release: Release, options: list[str]) -> dict[str, Any]:
    code = f"{release.uri}/spark"
    arguments = ["spark-submit", "--py-files", f"{code}/orchard_spark.zip", f"{code}/{name}.py", *options]
    characters = sum(len(argument) for argument in arguments)
    if characters > MAX_ARGUMENT_CHARACTERS:
        raise ArgumentsTooLong(name, characters)
    return {
        "Name": name,
        # After a failure, the cluster keeps running until the DAG's teardown, so that EMR can upload the step's logs.
        "ActionOnFailure": "CANCEL_AND_WAIT",
        "HadoopJarStep": {"Jar": "command-runner.jar", "Args": arguments},
    }
