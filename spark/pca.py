"""Step 3: centred PCA of a run's features.

Reads the files of `features/` that the features step lists. Writes `embeddings/` (one vector per image), `pca_model/`
(one row) and `pca.metrics.json`.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import RDD, Accumulator, SparkContext

from orchard_spark import parts, schemas, step
from orchard_spark.moments import CannotFit, Moments, Pca, fit
from orchard_spark.prefetch import prefetch

# 10 MB of features. Larger batches are hardly faster, and take more of a worker's memory.
BATCH_ROWS = 2048
# The moments of 1280 columns are 13 MB. A merging task, and the driver, each hold about this many at a time.
FAN_IN = 4
# Moments, and their position in the order of addition.
Numbered = tuple[int, Moments]

EXAMPLE = """example:
  spark-submit --py-files orchard_spark.zip pca.py \\
      --run-uri s3://BUCKET/runs/fruits/20261122T020000-1a2b3c --n-components 0.95
"""

log = logging.getLogger("pca")


def to_matrix(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Return the features of a batch as an array [rows, 1280]."""
    values: npt.NDArray[np.float32] = batch["features"].flatten().to_numpy()
    return values.reshape(batch.num_rows, -1)


def moments_of_parts(features: Iterable[parts.Part]) -> Moments:
    """Return the moments of files of FEATURES, in one pass over them."""
    batches = (batch for part in features for batch in parts.read(part, ["features"], BATCH_ROWS))
    return Moments.of_batches(to_matrix(batch) for batch in prefetch(batches))


def merge(sums: RDD[Numbered], count: int) -> RDD[Numbered]:
    """Add up `count` moments, numbered from 0, in a tree of tasks, until at most FAN_IN are left.

    Moments are always added in the order of their numbers, so that equal data give bit-identical results.
    """

    def add_groups(grouped: Iterable[tuple[int, Numbered]]) -> Iterator[Numbered]:
        groups: dict[int, dict[int, Moments]] = {}
        for group, (number, summand) in grouped:
            groups.setdefault(group, {})[number] = summand
        for group, members in groups.items():
            yield group, reduce(add, (members[number] for number in sorted(members)))

    while count > FAN_IN:
        count = math.ceil(count / FAN_IN)
        grouped = sums.map(lambda numbered: (numbered[0] // FAN_IN, numbered)).partitionBy(count, int)
        sums = grouped.mapPartitions(add_groups)
    return sums


def moments(
    context: SparkContext, features: Sequence[parts.Part], usage: Accumulator[list[parts.TaskUsage]]
) -> Moments:
    """Return the moments of all features, in one pass over them, with one task per task slot.

    Moments are 13 MB for any number of rows, so fewer tasks send less data.

    Raises:
        CannotFit: there are no features.
    """
    if not features:
        raise CannotFit("PCA needs at least 2 images; the run has 0")
    count = min(len(features), context.defaultParallelism)
    shares = [(number, features[number::count]) for number in range(count)]
    sums = parts.map_tasks(context, lambda share: (share[0], moments_of_parts(share[1])), shares, usage)
    merged = dict(merge(sums, count).collect())
    return reduce(add, (merged[number] for number in sorted(merged)))


def embed(part: parts.Part, pca: Pca, run_id: str) -> Iterator[pa.RecordBatch]:
    """Yield the EMBEDDINGS of one file of FEATURES: each image's vector, computed with the fitted PCA."""
    for batch in prefetch(parts.read(part, ["path", "label", "etag", "features"], BATCH_ROWS)):
        vectors = pca.transform(to_matrix(batch))
        columns = {
            "path": batch["path"],
            "label": batch["label"],
            "etag": batch["etag"],
            "vector": schemas.to_list_array(vectors),
            "pca_model": [pca.name] * len(vectors),
            "run_id": [run_id] * len(vectors),
        }
        yield pa.RecordBatch.from_pydict(columns, schema=schemas.EMBEDDINGS)


def pca_model_table(pca: Pca, model: str, run_id: str) -> pa.Table:
    """Return a table of PCA_MODEL, whose only row is this PCA."""
    row = {
        "pca_model": pca.name,
        "model": model,
        "n_samples_": pca.n_samples_,
        "n_components_": len(pca.components_),
        "mean_": pca.mean_.tolist(),
        "components_": pca.components_.tolist(),
        "explained_variance_": pca.explained_variance_.tolist(),
        "explained_variance_ratio_": pca.explained_variance_ratio_.tolist(),
        "run_id": run_id,
    }
    return pa.Table.from_pylist([row], schema=schemas.PCA_MODEL)


def run(run_uri: str, n_components: float) -> dict[str, object]:
    """Run the step and return its metrics.

    Raises:
        step.StepUnfinished: the features step has not finished.
        CannotFit: see `orchard_spark.moments.fit`.
        step.LostRows: the number of embeddings differs from the number of features.
    """
    started = time.monotonic()
    run_id = step.run_id(run_uri)
    with step.running(run_uri, "pca") as context:
        features_metrics = step.read_metrics(run_uri, "features")
        features = step.files_of(features_metrics, "features")
        fit_usage, embed_usage = parts.task_usage(context), parts.task_usage(context)
        pca = fit(moments(context, features, fit_usage), n_components)
        explained_variance = float(pca.explained_variance_ratio_.sum())
        log.info(
            "pca: %d images, %d components explain %.4f of the variance, model %s",
            pca.n_samples_,
            len(pca.components_),
            explained_variance,
            pca.name,
        )
        fitted = context.broadcast(pca)
        rows_in = parts.count_rows(features)
        written = parts.write_dataset(
            context,
            features,
            lambda part: embed(part, fitted.value, run_id),
            f"{run_uri}/embeddings",
            schemas.EMBEDDINGS,
            embed_usage,
        )
        rows_out = parts.count_rows(written)
        if not rows_in == pca.n_samples_ == rows_out:
            raise step.LostRows(f"{rows_in} features, {pca.n_samples_} in the fit, {rows_out} embeddings in {run_uri}")
        pca_model = parts.write_table(f"{run_uri}/pca_model", pca_model_table(pca, features_metrics["model"], run_id))
        return step.write_metrics(
            run_uri,
            "pca",
            files={"embeddings": written, "pca_model": [pca_model]},
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            passes=[fit_usage.value, embed_usage.value],
            n_components=len(pca.components_),
            explained_variance=explained_variance,
            pca_model=pca.name,
        )


def n_components(text: str) -> float:
    """Parse a number of components or a share of the variance, for argparse.

    >>> n_components("50"), n_components("0.95")
    (50.0, 0.95)
    """
    value = float(text)
    # A text such as 0.99999999999999999 is a share, but as a float it is the whole number 1.
    whole = value >= 1 and value.is_integer() and Decimal(text) == Decimal(value)
    if not (0 < value < 1 or whole):
        raise argparse.ArgumentTypeError(
            f"{text}: use a whole number of components, or a share of the variance between 0 and 1"
        )
    return value


def main(argv: list[str] | None = None) -> None:
    """Run the step. `argv` defaults to the command-line arguments of the process."""
    parser = step.argument_parser(
        "Fit a centred PCA to a run's features and compute every image's vector.",
        EXAMPLE,
        run_folder="run folder that contains features/",
    )
    parser.add_argument(
        "--n-components",
        required=True,
        type=n_components,
        help="as in scikit-learn: a number of components (50), or the share of the variance to keep (0.95)",
    )
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.n_components)


if __name__ == "__main__":
    main()
