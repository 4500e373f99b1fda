"""Step 2: MobileNetV2 features of every image of a run.

Reads the files of `images/` that the ingest step lists. Writes `features/` (1280 float32 per image) and
`features.metrics.json`.
"""

import logging
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark import Accumulator

from orchard_spark import images, mobilenet, objects, parts, rejects, schemas, step, turns
from orchard_spark.prefetch import prefetch

# A worker holds up to four decoded batches of 32 images of 150 KB: one in the model, two queued, one being decoded.
# It holds the files of one batch, which is part of a row group: less than 16 MiB, or a single larger image.
BATCH_ROWS = 32
ANY_NUMBER_OF_PIXELS = int(np.iinfo(np.int64).max)
COLUMNS = ("path", "label", "etag", "sha256", "content")

EXAMPLE = """example:
  spark-submit --py-files orchard_spark.zip features.py \\
      --run-uri s3://BUCKET/runs/fruits/20261122T020000-1a2b3c \\
      --model-uri s3://BUCKET/releases/VERSION/model/mobilenetv2-1.0-224-imagenet-6001306c.tflite
"""

log = logging.getLogger("features")


class UndecodableImage(RuntimeError):
    """An image that the ingest step verified does not decode in this step."""


def decode_batch(batch: pa.RecordBatch, size_px: int) -> images.RgbPixels:
    """Return the images of a batch as the model's input: uint8 [rows, size_px, size_px, 3].

    Raises:
        UndecodableImage: an image does not decode.
    """
    pixels = np.empty((batch.num_rows, size_px, size_px, 3), np.uint8)
    for row, (path, content) in enumerate(zip(batch["path"], batch["content"], strict=True)):
        file = content.as_py()
        try:
            with turns.turn(images.decoding_bytes(file)):
                # In one expression, so that the decoded image is released before the turn ends.
                pixels[row] = images.to_model_input(images.decode(file, ANY_NUMBER_OF_PIXELS)[0], size_px)
        except rejects.RejectedObject as error:
            raise UndecodableImage(f"{path}: {error.reason}: {error}") from error
    return pixels


def features_batch(batch: pa.RecordBatch, values: mobilenet.Features, model_name: str, run_id: str) -> pa.RecordBatch:
    """Return a batch of FEATURES from a batch of images and their features [rows, 1280]."""
    columns = {
        "path": batch["path"],
        "label": batch["label"],
        "etag": batch["etag"],
        "sha256": batch["sha256"],
        "features": schemas.to_list_array(values),
        "model": [model_name] * len(values),
        "run_id": [run_id] * len(values),
    }
    return pa.RecordBatch.from_pydict(columns, schema=schemas.FEATURES)


def featurise_part(
    part: parts.Part, model: mobilenet.MobileNet, model_name: str, run_id: str, inferences: Accumulator[int]
) -> Iterator[pa.RecordBatch]:
    """Yield the FEATURES of one file of IMAGES, in order, with one inference per image; `inferences` counts them.

    A thread reads and decodes the next images while the model runs. Both release Python's global interpreter lock.

    Raises:
        UndecodableImage: an image does not decode.
    """
    batches = parts.read(part, COLUMNS, BATCH_ROWS, within_row_groups=True)
    for batch, pixels in prefetch(
        (batch.drop_columns("content"), decode_batch(batch, model.size_px)) for batch in batches
    ):
        values = np.stack(list(model.features(pixels)))
        inferences.add(len(values))
        yield features_batch(batch, values, model_name, run_id)


def run(run_uri: str, model_uri: str) -> dict[str, object]:
    """Run the step and return its metrics.

    Raises:
        step.StepUnfinished: the ingest step has not finished.
        mobilenet.WrongModel: the file is not a model that model/export.py wrote.
        step.LostRows: the number of features differs from the number of images.
    """
    started = time.monotonic()
    name, run_id = mobilenet.model_name(model_uri), step.run_id(run_uri)
    with step.running(run_uri, "features") as context:
        content = objects.read(model_uri)
        mobilenet.load(content)  # a wrong file fails once, here, instead of in every task
        model = context.broadcast(content)
        inferences, usage = context.accumulator(0), parts.task_usage(context)
        inputs = step.files_of(step.read_metrics(run_uri, "ingest"), "images")
        rows_in = parts.count_rows(inputs)
        log.info("features: %d images in %d files, model %s", rows_in, len(inputs), name)

        def featurise(part: parts.Part) -> Iterator[pa.RecordBatch]:
            return featurise_part(part, mobilenet.load(model.value), name, run_id, inferences)

        written = parts.write_dataset(context, inputs, featurise, f"{run_uri}/features", schemas.FEATURES, usage)
        rows_out = parts.count_rows(written)
        if rows_out != rows_in:
            raise step.LostRows(f"{rows_in} images, but {rows_out} features in {run_uri}")
        return step.write_metrics(
            run_uri,
            "features",
            files={"features": written},
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            passes=[usage.value],
            inferences=inferences.value,
            model=name,
        )


def main(argv: list[str] | None = None) -> None:
    """Run the step. `argv` defaults to the command-line arguments of the process."""
    parser = step.argument_parser(
        "Compute MobileNetV2 features of every image of a run.", EXAMPLE, run_folder="run folder that contains images/"
    )
    parser.add_argument("--model-uri", required=True, help="URI of the .tflite file that `make release-parts` exports")
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.model_uri)


if __name__ == "__main__":
    main()
