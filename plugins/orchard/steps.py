"""The three Spark steps, as EMR step requests."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from orchard.settings import Settings

# EMR refuses a step with longer arguments.
MAX_ARGUMENT_CHARACTERS = 10_240


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One Spark step of a run: `spark/<name>.py`, its arguments, and how long it may take."""

    name: str
    arguments: tuple[str, ...]
    timeout: timedelta


def stages(settings: Settings, *, input_uri: str, run_uri: str, model_uri: str) -> tuple[Stage, Stage, Stage]:
    """The steps in their order. The URIs may be Jinja templates; so are the arguments that come from the params."""
    run = ("--run-uri", run_uri)
    return (
        Stage(
            name="ingest",
            arguments=("--input-uri", input_uri, *run, "--max-reject-ratio", "{{ params.max_reject_ratio }}"),
            timeout=timedelta(minutes=settings.ingest_timeout_minutes),
        ),
        Stage(
            name="features",
            arguments=(*run, "--model-uri", model_uri),
            timeout=timedelta(minutes=settings.features_timeout_minutes),
        ),
        Stage(
            name="pca",
            arguments=(*run, "--n-components", "{{ params.n_components }}"),
            timeout=timedelta(minutes=settings.pca_timeout_minutes),
        ),
    )


def spark_step(stage: Stage, *, release_uri: str) -> dict[str, Any]:
    """The StepConfig of AddJobFlowSteps, with the code of a release; its URI may be a Jinja template, too.

    A failure leaves the cluster as it is: the DAG's teardown ends it, and until then its logs are to be had.

    Raises:
        ValueError: the arguments are longer than EMR takes.
    """
    arguments = [
        "spark-submit",
        "--py-files",
        f"{release_uri}/spark/orchard_spark.zip",
        f"{release_uri}/spark/{stage.name}.py",
        *stage.arguments,
    ]
    characters = sum(len(argument) for argument in arguments)
    if characters > MAX_ARGUMENT_CHARACTERS:
        raise ValueError(f"the arguments of step {stage.name} have {characters} characters; EMR takes 10,240")
    return {
        "Name": stage.name,
        "ActionOnFailure": "CANCEL_AND_WAIT",
        "HadoopJarStep": {"Jar": "command-runner.jar", "Args": arguments},
    }
