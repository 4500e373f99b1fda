"""Step 2: MobileNetV2 features of every image of a run.

    spark-submit --py-files orchard_spark.zip features.py --run-uri s3://BUCKET/runs/DATASET/RUN --model-uri s3://…/model.tflite

Reads the run's `images/`, writes its `features/` (1280 float32 an image) and `features.metrics.json`.
"""

import argparse
import logging
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark import Accumulator, Broadcast
from pyspark.sql import DataFrame

from orchard_spark import images, job, mobilenet, objects, tables

log = logging.getLogger("features")


class UndecodableImage(RuntimeError):
    """An image that ingest has verified does not decode here."""


def _pixels(batch: pa.RecordBatch, size_px: int) -> Iterator[images.RgbPixels]:
    for path, content in zip(batch["path"], batch["content"], strict=True):
        try:
            image, _ = images.decode(content.as_py(), max_pixels=np.iinfo(np.int64).max)
        except images.RejectedImage as error:
            raise UndecodableImage(f"{path}: {error.reason}: {error}") from error
        yield images.to_model_input(image, size_px)


def featurise(batch: pa.RecordBatch, model: mobilenet.MobileNet, model_name: str, run_id: str) -> pa.RecordBatch:
    """A batch of FEATURES for a batch of IMAGES, in the same order.

    Raises:
        UndecodableImage: a file does not decode.
    """
    values = np.stack(list(model.features(_pixels(batch, model.size_px))))
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    columns = {
        "path": batch["path"],
        "label": batch["label"],
        "etag": batch["etag"],
        "sha256": batch["sha256"],
        "features": pa.ListArray.from_arrays(offsets, values.ravel()),
        "model": [model_name] * len(values),
        "run_id": [run_id] * len(values),
    }
    return pa.RecordBatch.from_pydict(columns, schema=tables.FEATURES)


def features(
    taken: DataFrame, model: Broadcast[bytes], model_name: str, run_id: str, inferences: Accumulator[int]
) -> DataFrame:
    """FEATURES of IMAGES, one inference an image; `inferences` counts them."""

    def featurise_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        loaded = mobilenet.load(model.value)
        for batch in batches:
            if batch.num_rows:
                inferences.add(batch.num_rows)
                yield featurise(batch, loaded, model_name, run_id)

    needed = taken.select("path", "label", "etag", "sha256", "content")
    return needed.mapInArrow(featurise_partition, tables.spark_schema(tables.FEATURES))


def run(run_uri: str, model_uri: str) -> dict[str, object]:
    """Do the step; return its metrics.

    Raises:
        mobilenet.WrongModel: the file is not an exported model.
        job.LostRows: not as many features as images.
    """
    started = time.monotonic()
    name = mobilenet.model_name(model_uri)
    with job.spark_session("features", mobilenet.BATCH_IMAGES) as spark:
        job.reopen(run_uri, "features")
        content = objects.read(model_uri)
        mobilenet.load(content)  # a wrong file fails here, once, not in every task
        model = spark.sparkContext.broadcast(content)
        inferences = spark.sparkContext.accumulator(0)
        taken = tables.read_table(spark, f"{run_uri}/images", tables.IMAGES)
        rows_in = taken.count()
        log.info("features: %d images, model %s", rows_in, name)
        result = features(taken, model, name, job.run_id(run_uri), inferences)
        tables.write_table(result, f"{run_uri}/features", tables.FEATURES)
        rows_out = spark.read.parquet(f"{run_uri}/features").count()
        if rows_out != rows_in:
            raise job.LostRows(f"{rows_in} images, but {rows_out} features in {run_uri}")
        return job.write_metrics(
            run_uri,
            "features",
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            inferences=inferences.value,
            model=name,
        )


def main(argv: list[str] | None = None) -> None:
    """Run with command line arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description="MobileNetV2 features of every image of a run.")
    parser.add_argument("--run-uri", required=True, type=lambda uri: objects.absolute(uri).rstrip("/"))
    parser.add_argument("--model-uri", required=True, help="the .tflite file that bootstrap/export_model.py wrote")
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.model_uri)


if __name__ == "__main__":
    main()
