"""Step 3: centred PCA of a run's features.

    spark-submit --py-files orchard_spark.zip pca.py --run-uri s3://BUCKET/runs/DATASET/RUN --n-components 0.95

Reads the run's `features/`, writes its `embeddings/` (a vector an image), `pca_model/` (one row) and
`pca.metrics.json`.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import RDD, Accumulator, SparkContext

from orchard_spark import job, objects, parts, tables
from orchard_spark.ahead import ahead
from orchard_spark.moments import CannotFit, Moments, Pca, fit

# 10 MB of features: the sums over a batch are then nearly as fast as over the whole, and a worker holds little.
BATCH_ROWS = 2048
# The sums over 1280 columns are 13 MB: what merges them, and the driver, each hold about this many at a time.
FAN_IN = 4
# Moments, and their place in the order in which they are added up.
Numbered = tuple[int, Moments]

log = logging.getLogger("pca")


def to_matrix(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """The features of a batch as an array [rows, 1280]."""
    values: npt.NDArray[np.float32] = batch["features"].flatten().to_numpy()
    return values.reshape(batch.num_rows, -1)


def moments_of_parts(features: Iterable[parts.Part]) -> Moments:
    """The moments of some files of FEATURES, in one pass over them."""
    batches = (batch for part in features for batch in parts.read(part, ["features"], BATCH_ROWS))
    return Moments.of_batches(to_matrix(batch) for batch in ahead(batches))


def merge(sums: RDD[Numbered], count: int) -> RDD[Numbered]:
    """Moments, numbered below `count`, added up to at most FAN_IN of them, in a tree of tasks.

    Always the same ones are added, in the order of their numbers, so that equal data give equal bits.
    """

    def add_up(grouped: Iterable[tuple[int, Numbered]]) -> Iterator[Numbered]:
        groups: dict[int, dict[int, Moments]] = {}
        for group, (number, found) in grouped:
            groups.setdefault(group, {})[number] = found
        for group, members in groups.items():
            yield group, reduce(add, (members[number] for number in sorted(members)))

    while count > FAN_IN:
        count = math.ceil(count / FAN_IN)
        grouped = sums.map(lambda numbered: (numbered[0] // FAN_IN, numbered)).partitionBy(count, int)
        sums = grouped.mapPartitions(add_up)
    return sums


def moments(context: SparkContext, features: Sequence[parts.Part], tasks: Accumulator[list[parts.Task]]) -> Moments:
    """The moments of all features, in one pass over them, with one task for each task slot.

    A sum is 13 MB, however many rows it is over: fewer tasks send fewer.

    Raises:
        CannotFit: there are no features.
    """
    if not features:
        raise CannotFit("PCA needs at least 2 images, and there are none")
    count = min(len(features), context.defaultParallelism)
    shares = [(number, features[number::count]) for number in range(count)]
    sums = parts.each(context, shares, lambda share: (share[0], moments_of_parts(share[1])), tasks)
    found = dict(merge(sums, count).collect())
    return reduce(add, (found[number] for number in sorted(found)))


def embed(part: parts.Part, pca: Pca, run_id: str) -> Iterator[pa.RecordBatch]:
    """EMBEDDINGS of one file of FEATURES: each image's vector under the fitted analysis."""
    for batch in ahead(parts.read(part, ["path", "label", "etag", "features"], BATCH_ROWS)):
        vectors = pca.transform(to_matrix(batch))
        columns = {
            "path": batch["path"],
            "label": batch["label"],
            "etag": batch["etag"],
            "vector": tables.to_lists(vectors),
            "pca_model": [pca.name] * len(vectors),
            "run_id": [run_id] * len(vectors),
        }
        yield pa.RecordBatch.from_pydict(columns, schema=tables.EMBEDDINGS)


def pca_model_table(pca: Pca, model: str, run_id: str) -> pa.Table:
    """The one row of PCA_MODEL."""
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
    return pa.Table.from_pylist([row], schema=tables.PCA_MODEL)


def run(run_uri: str, n_components: float) -> dict[str, object]:
    """Do the step; return its metrics.

    Raises:
        CannotFit: see `orchard_spark.moments.fit`.
        job.LostRows: not as many embeddings as features.
    """
    started = time.monotonic()
    run_id = job.run_id(run_uri)
    with job.spark_context("pca") as context:
        job.reopen(run_uri, "pca")
        features = parts.find(f"{run_uri}/features", tables.FEATURES)
        summing, embedding = parts.task_list(context), parts.task_list(context)
        pca = fit(moments(context, features, summing), n_components)
        variance_kept = float(pca.explained_variance_ratio_.sum())
        log.info(
            "pca: %d images, %d components keep %.4f of the variance; model %s",
            pca.n_samples_,
            len(pca.components_),
            variance_kept,
            pca.name,
        )
        fitted = context.broadcast(pca)
        rows_in = parts.rows(features)
        rows_out = parts.make(
            context,
            features,
            lambda part: embed(part, fitted.value, run_id),
            f"{run_uri}/embeddings",
            tables.EMBEDDINGS,
            embedding,
        )
        if not rows_in == pca.n_samples_ == rows_out:
            raise job.LostRows(f"{rows_in} features, {pca.n_samples_} summed, {rows_out} embeddings in {run_uri}")
        model = next(parts.read(features[0], ["model"], 1))["model"][0].as_py()
        objects.write_table(f"{run_uri}/pca_model/part-00000.parquet", pca_model_table(pca, model, run_id))
        return job.write_metrics(
            run_uri,
            "pca",
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            passes=[summing.value, embedding.value],
            n_components=len(pca.components_),
            explained_variance=variance_kept,
            pca_model=pca.name,
        )


def n_components(text: str) -> float:
    """A number of components or a share of the variance, for argparse.

    >>> n_components("50"), n_components("0.95")
    (50.0, 0.95)
    """
    value = float(text)
    if not (0 < value < 1 or (value >= 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of components, or a share of the variance")
    return value


def main(argv: list[str] | None = None) -> None:
    """Run with command line arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description="Centred PCA of a run's features.")
    parser.add_argument("--run-uri", required=True, type=lambda uri: objects.absolute(uri).rstrip("/"))
    parser.add_argument("--n-components", required=True, type=n_components, help="as in scikit-learn: 50, or 0.95")
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.n_components)


if __name__ == "__main__":
    main()
