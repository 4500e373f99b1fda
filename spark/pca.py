"""Step 3: centred PCA of a run's features.

    spark-submit --py-files orchard_spark.zip pca.py --run-uri s3://BUCKET/runs/DATASET/RUN --n-components 0.95

Reads the run's `features/`, writes its `embeddings/` (a vector an image), `pca_model/` (one row) and
`pca.metrics.json`.
"""

import argparse
import logging
import time
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import DataFrame

from orchard_spark import job, objects, tables
from orchard_spark.moments import CannotFit, Moments, Pca, fit

BATCH_ROWS = 1024
# The moments of 1280 columns are 13 MB a part, and the driver holds all parts at once, in a heap of perhaps 2 GB.
MAX_PARTS = 16

log = logging.getLogger("pca")


def to_matrix(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """The features of a batch as an array [rows, 1280]."""
    values: npt.NDArray[np.float32] = batch["features"].flatten().to_numpy()
    return values.reshape(batch.num_rows, -1)


def moments(features: DataFrame) -> Moments:
    """The moments of all features, in one pass over them.

    Raises:
        CannotFit: there are no features.
    """

    def sum_up(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = (Moments.of(to_matrix(batch)) for batch in batches if batch.num_rows)
        first = next(parts, None)
        if first is not None:
            yield pa.RecordBatch.from_pydict({"moments": [reduce(add, parts, first).to_bytes()]})

    parts = features.select("features").coalesce(MAX_PARTS).mapInArrow(sum_up, "moments binary")
    sums = [Moments.from_bytes(bytes(row["moments"])) for row in parts.collect()]
    if not sums:
        raise CannotFit("PCA needs at least 2 images, and there are none")
    return reduce(add, sums)


def embed(features: DataFrame, pca: Broadcast[Pca], run_id: str) -> DataFrame:
    """EMBEDDINGS of FEATURES: each image's vector under the fitted analysis."""

    def embed_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                vectors = pca.value.transform(to_matrix(batch))
                offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
                columns = {
                    "path": batch["path"],
                    "label": batch["label"],
                    "etag": batch["etag"],
                    "vector": pa.ListArray.from_arrays(offsets, vectors.ravel()),
                    "pca_model": [pca.value.name] * len(vectors),
                    "run_id": [run_id] * len(vectors),
                }
                yield pa.RecordBatch.from_pydict(columns, schema=tables.EMBEDDINGS)

    needed = features.select("path", "label", "etag", "features")
    return needed.mapInArrow(embed_partition, tables.spark_schema(tables.EMBEDDINGS))


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
    with job.spark_session("pca", BATCH_ROWS) as spark:
        job.reopen(run_uri, "pca")
        features = tables.read_table(spark, f"{run_uri}/features", tables.FEATURES)
        pca = fit(moments(features), n_components)
        variance_kept = float(pca.explained_variance_ratio_.sum())
        log.info(
            "pca: %d images, %d components keep %.4f of the variance; model %s",
            pca.n_samples_,
            len(pca.components_),
            variance_kept,
            pca.name,
        )
        embeddings = embed(features, spark.sparkContext.broadcast(pca), run_id)
        tables.write_table(embeddings, f"{run_uri}/embeddings", tables.EMBEDDINGS)
        rows_out = spark.read.parquet(f"{run_uri}/embeddings").count()
        if rows_out != pca.n_samples_:
            raise job.LostRows(f"{pca.n_samples_} features, but {rows_out} embeddings in {run_uri}")
        (model,) = (row["model"] for row in features.select("model").limit(1).collect())
        objects.write_table(f"{run_uri}/pca_model/part-00000.parquet", pca_model_table(pca, model, run_id))
        return job.write_metrics(
            run_uri,
            "pca",
            rows_in=pca.n_samples_,
            rows_out=rows_out,
            started=started,
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
