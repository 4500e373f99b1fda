"""The summary of a run: the metrics of its plan and of its steps, checked against each other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchard.errors import PermanentError
from orchard.run.names import run_id_of
from orchard.run.plan import RunPlan
from orchard.run.plan_files import read_plan
from orchard.run.steps import STEPS
from orchard.storage import find_json, read_json, split_uri, write_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SUMMARY, REPORT = "summary.json", "report.html"


class InconsistentRun(PermanentError):
    """The plan, the steps and the files of a run disagree."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of a run: of its plan, and of each step."""

    plan: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]

    def files(self, step: str, dataset: str) -> Sequence[Mapping[str, Any]]:
        """Return the files of a dataset that the plan or a step wrote: each with its `uri`, `rows` and `bytes`."""
        files: Sequence[Mapping[str, Any]] = ({"plan": self.plan} | dict(self.steps))[step]["files"][dataset]
        return files

    def rows(self, step: str, dataset: str) -> int:
        """Return the number of rows of a dataset that the plan or a step wrote."""
        return sum(file["rows"] for file in self.files(step, dataset))

    def rejects(self) -> dict[str, int]:
        """Return the number of objects that are refused now, by reason."""
        kept, found = self.plan["kept_reject_reasons"], self.steps["ingest"]["reject_reasons"]
        return dict(sorted((Counter(kept) + Counter(found)).items()))


def read_metrics(s3: "S3Client", run_uri: str) -> Metrics:
    """Read the metrics files of a run.

    Raises:
        NoPlan: the run has no plan. forget_dataset deletes it.
        botocore.exceptions.ClientError: NoSuchKey: a step has not finished.
    """
    plan = read_plan(s3, run_uri)
    return Metrics(plan, {name: read_json(s3, f"{run_uri}/{name}.metrics.json") for name in STEPS})


def read_summary(s3: "S3Client", run_uri: str) -> dict[str, Any] | None:
    """Return the content of a run's `summary.json`, or None if there is none."""
    return find_json(s3, f"{run_uri}/{SUMMARY}")


def published_at(s3: "S3Client", run_uri: str) -> datetime:
    """Return when a run was published: when `publish` wrote its summary, as the last thing that others can see.

    Publishing a run again does not write its summary again, unless steps of the run were redone.

    Raises:
        botocore.exceptions.ClientError: it was not published.
    """
    bucket, prefix = split_uri(run_uri)
    return s3.head_object(Bucket=bucket, Key=f"{prefix}/{SUMMARY}")["LastModified"].astimezone(UTC)


def summarise(plan: RunPlan, metrics: Metrics, cluster_id: str | None) -> dict[str, Any]:
    """Return the summary of a run from its plan and the metrics of its steps.

    Raises:
        InconsistentRun: metrics are of another run, or a step has lost or added images.
    """
    check_run(plan, metrics)
    check_counts(plan, metrics)
    planned, (ingest, features, pca) = metrics.plan, (metrics.steps[name] for name in STEPS)
    return {
        "run_id": run_id_of(plan["run_uri"]),
        "run_uri": plan["run_uri"],
        "report_uri": f"{plan['run_uri']}/{REPORT}",
        "dataset_uri": plan["dataset_uri"],
        "base_run_id": planned["base_run_id"],
        "cluster_id": cluster_id,
        "images_listed": planned["listed"],
        **{key: planned[key] for key in ("new", "changed", "deleted", "unchanged")},
        # The images that the dataset holds now, and the objects that are refused now.
        "images_ingested": pca["rows_in"],
        "images_rejected": planned["rejects_kept"] + ingest["rejects"],
        "reject_reasons": metrics.rejects(),
        "ignored": planned["ignored"],
        "duplicates": pca["duplicates"],
        "inferences": features["rows_out"],
        "known": features["known"],
        "features_rows": features["rows_out"],
        "embeddings_rows": pca["rows_out"],
        "n_components": pca["n_components"],
        "explained_variance": pca["explained_variance"],
        "model": features["model"],
        "pca_model": pca["pca_model"],
        "pca_mode": pca["pca_mode"],
        "drift": pca["drift"],
        "estimate": planned.get("estimate"),
        # A release before these figures does not measure them.
        "label_accuracy": (accuracy := pca.get("label_accuracy", {})).get("accuracy"),
        "label_sample": accuracy.get("images"),
        "step_seconds": {name: step["seconds"] for name, step in metrics.steps.items()},
        "step_images_per_second": {name: step["images_per_second"] for name, step in metrics.steps.items()},
    }


def check_run(plan: RunPlan, metrics: Metrics) -> None:
    """Check that all metrics are of the run and of its dataset.

    Raises:
        InconsistentRun: they are not.
    """
    name = run_id_of(plan["run_uri"])
    found = {"plan": metrics.plan["run_id"]} | {step: content["run_id"] for step, content in metrics.steps.items()}
    if set(found.values()) != {name} or metrics.plan["dataset"] != plan["dataset_uri"]:
        raise InconsistentRun(
            f"{plan['run_uri']} is not published: its metrics are of the runs {found} and of "
            f"{metrics.plan['dataset']}, not of {plan['dataset_uri']}. Clear the task `plan` with downstream"
        )
    outdated = [step for step, content in metrics.steps.items() if content["plan_id"] != metrics.plan["plan_id"]]
    if outdated:
        raise InconsistentRun(
            f"{plan['run_uri']} is not published: it was planned again, but {', '.join(outdated)} worked on an earlier "
            "plan. Clear the task `plan` with downstream"
        )


def check_counts(plan: RunPlan, metrics: Metrics) -> None:
    """Check that no image was lost or added between the plan and the embeddings.

    Raises:
        InconsistentRun: two counts that must be equal differ.
    """
    ingest, features, pca = (metrics.steps[name] for name in STEPS)
    images = metrics.plan["images_kept"] + metrics.rows("features", "new_images")
    equal = [
        ("objects to read", metrics.rows("plan", "inventory"), "objects that ingest read", ingest["rows_in"]),
        ("objects that ingest read", ingest["rows_in"], "images and rejects", ingest["rows_out"] + ingest["rejects"]),
        ("rejects of ingest", ingest["rejects"], "rows of rejects", metrics.rows("ingest", "rejects")),
        ("images of ingest", ingest["rows_out"], "images into features", features["rows_in"]),
        ("images of ingest", ingest["rows_out"], "rows of new_images", metrics.rows("features", "new_images")),
        ("inferences", features["rows_out"], "rows of features", metrics.rows("features", "features")),
        ("images kept", metrics.plan["images_kept"], "rows of kept_images", metrics.rows("plan", "kept_images")),
        ("rejects kept", metrics.plan["rejects_kept"], "rows of kept_rejects", metrics.rows("plan", "kept_rejects")),
        ("kept and new images", images, "images into pca", pca["rows_in"]),
        ("kept and new images", images, "rows of embeddings", metrics.rows("pca", "embeddings")),
        ("embeddings", pca["rows_out"], "rows of embeddings", metrics.rows("pca", "embeddings")),
        ("rows to compact", metrics.rows("pca", "replaced"), "rows compacted", metrics.rows("pca", "compacted")),
    ]
    differences = [f"{left} {name}, but {right} {other}" for name, left, other, right in equal if left != right]
    if differences:
        raise InconsistentRun(
            f"{plan['run_uri']} is not published: {'; '.join(differences)}. Clear the task `plan` with downstream; if "
            "this persists, it is a bug in Orchard: please report it"
        )


def write_summary(s3: "S3Client", summary: Mapping[str, Any]) -> None:
    """Write a run's `summary.json`, which marks the run as finished."""
    write_json(s3, f"{summary['run_uri']}/{SUMMARY}", summary)
