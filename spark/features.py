"""Step 2: MobileNetV2 features of every image of a run.

    spark-submit --py-files orchard_spark.zip features.py --run-uri s3://BUCKET/runs/DATASET/RUN --model-uri s3://…/model.tflite

Reads the run's `images/`, writes its `features/` (1280 float32 an image) and `features.metrics.json`.
"""

import argparse
import logging
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark import Accumulator

from orchard_spark import images, job, mobilenet, objects, parts, tables
from orchard_spark.ahead import ahead

# What a worker holds decoded: 32 images of 150 KB, twice ahead of the inference.
BATCH_ROWS = 32
NEEDED = ("path", "label", "etag", "sha256", "content")

log = logging.getLogger("features")


class UndecodableImage(RuntimeError):
    """An image that ingest has verified does not decode here."""


def pixels(batch: pa.RecordBatch, size_px: int) -> images.RgbPixels:
    """The images of a batch as the model takes them: uint8 [rows, size_px, size_px, 3].

    Raises:
        UndecodableImage: a file does not decode.
    """
    decoded = np.empty((batch.num_rows, size_px, size_px, 3), np.uint8)
    for row, (path, content) in enumerate(zip(batch["path"], batch["content"], strict=True)):
        try:
            image, _ = images.decode(content.as_py(), max_pixels=np.iinfo(np.int64).max)
        except images.RejectedImage as error:
            raise UndecodableImage(f"{path}: {error.reason}: {error}") from error
        decoded[row] = images.to_model_input(image, size_px)
    return decoded


def featurise(batch: pa.RecordBatch, values: mobilenet.Features, model_name: str, run_id: str) -> pa.RecordBatch:
    """A batch of FEATURES: the images of a batch with their features [rows, 1280]."""
    columns = {
        "path": batch["path"],
        "label": batch["label"],
        "etag": batch["etag"],
        "sha256": batch["sha256"],
        "features": tables.to_lists(values),
        "model": [model_name] * len(values),
        "run_id": [run_id] * len(values),
    }
    return pa.RecordBatch.from_pydict(columns, schema=tables.FEATURES)


def features(
    part: parts.Part, model: mobilenet.MobileNet, model_name: str, run_id: str, inferences: Accumulator[int]
) -> Iterator[pa.RecordBatch]:
    """FEATURES of one file of IMAGES, in its order, one inference an image; `inferences` counts them.

    The next images are read and decoded in a thread while the model works on these: neither holds Python's lock.

    Raises:
        UndecodableImage: a file does not decode.
    """
    read = parts.read(part, NEEDED, BATCH_ROWS)
    for batch, decoded in ahead((batch, pixels(batch, model.size_px)) for batch in read):
        values = np.stack(list(model.features(decoded)))
        inferences.add(len(values))
        yield featurise(batch, values, model_name, run_id)


def run(run_uri: str, model_uri: str) -> dict[str, object]:
    """Do the step; return its metrics.

    Raises:
        mobilenet.WrongModel: the file is not an exported model.
        job.LostRows: not as many features as images.
    """
    started = time.monotonic()
    name, run_id = mobilenet.model_name(model_uri), job.run_id(run_uri)
    with job.spark_context("features") as context:
        job.reopen(run_uri, "features")
        content = objects.read(model_uri)
        mobilenet.load(content)  # a wrong file fails here, once, not in every task
        model = context.broadcast(content)
        inferences, tasks = context.accumulator(0), parts.task_list(context)
        taken = parts.find(f"{run_uri}/images", tables.IMAGES)
        rows_in = parts.rows(taken)
        log.info("features: %d images in %d files, model %s", rows_in, len(taken), name)

        def work(part: parts.Part) -> Iterator[pa.RecordBatch]:
            return features(part, mobilenet.load(model.value), name, run_id, inferences)

        rows_out = parts.make(context, taken, work, f"{run_uri}/features", tables.FEATURES, tasks)
        if rows_out != rows_in:
            raise job.LostRows(f"{rows_in} images, but {rows_out} features in {run_uri}")
        return job.write_metrics(
            run_uri,
            "features",
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            passes=[tasks.value],
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
