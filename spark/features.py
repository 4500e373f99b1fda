"""Step 2: MobileNetV2 features of every content that the run brings and that no earlier run has inferred.

Reads the files of `images/` that the ingest step lists, and the files of the table `features` that the plan lists.
Writes new files of that table (1280 float32 per content), `new_images/` (what the table `images` needs to know about
each image of the run), and `features.metrics.json`.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import Accumulator, SparkContext

from orchard_spark import contents, images, mobilenet, objects, parts, progress, rejects, schemas, step, turns
from orchard_spark.contents import Digests
from orchard_spark.parts import Indices, Part, TaskUsage
from orchard_spark.prefetch import prefetch

# A worker holds up to four decoded batches of 32 images of 150 KB: one in the model, two queued, one being decoded.
# It holds the files of one batch, which is part of a row group: less than 16 MiB, or a single larger image.
BATCH_ROWS = 32
ANY_NUMBER_OF_PIXELS = int(np.iinfo(np.int64).max)
COLUMNS = ("sha256", "content", "path")
# A file of features has about 40 MB, so that it is not a small file, and its task ends after a few minutes.
FILE_ROWS = 8192

EXAMPLE = """example:
  spark-submit --py-files orchard_spark.zip features.py \\
      --run-uri s3://BUCKET/runs/fruits/20261122T020000-1a2b3c \\
      --scratch-uri s3://BUCKET/scratch/fruits/20261122T020000-1a2b3c --warehouse-uri s3://BUCKET/warehouse \\
      --model-uri s3://BUCKET/releases/VERSION/model/mobilenetv2-1.0-224-imagenet-6001306c.tflite
"""

log = logging.getLogger("features")

Usage = Accumulator[list[TaskUsage]]


class UndecodableImage(RuntimeError):
    """An image that the ingest step verified does not decode in this step."""


@dataclass(frozen=True)
class RowsOfPart:
    """Some rows of a file, by their sorted numbers."""

    part: Part
    rows: Indices


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


def features_batch(sha256: pa.Array, values: mobilenet.Features, model_name: str, run_id: str) -> pa.RecordBatch:
    """Return a batch of FEATURES from contents and their features [rows, 1280]."""
    columns = {
        "sha256": sha256,
        "model": [model_name] * len(values),
        "features": schemas.to_list_array(values),
        "run_id": [run_id] * len(values),
    }
    return pa.RecordBatch.from_pydict(columns, schema=schemas.FEATURES)


def featurise(
    share: Sequence[RowsOfPart], model: mobilenet.MobileNet, model_name: str, run_id: str, inferences: Accumulator[int]
) -> Iterator[pa.RecordBatch]:
    """Yield the FEATURES of some images, in order, with one inference per image; `inferences` counts them.

    A thread reads and decodes the next images while the model runs. Both release Python's global interpreter lock.

    Raises:
        UndecodableImage: an image does not decode.
    """
    batches = (batch for one in share for batch in parts.read_rows(one.part, COLUMNS, one.rows, BATCH_ROWS))
    for sha256, pixels in prefetch((batch["sha256"], decode_batch(batch, model.size_px)) for batch in batches):
        values = np.stack(list(model.features(pixels)))
        inferences.add(len(values))
        yield features_batch(sha256, values, model_name, run_id)


@dataclass(frozen=True)
class Contents:
    """The contents of a run's images.

    `of_part` has the digests of each file, in order. `distinct` has each content once, sorted. `runs` has, for each of
    them, the number of the run in `run_ids` that inferred it before, or NOT_FOUND.
    """

    of_part: Sequence[Digests]
    distinct: Digests
    runs: Indices
    run_ids: Sequence[str]

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(map(len, self.of_part))

    @property
    def known(self) -> int:
        """The number of contents that an earlier run inferred."""
        return int((self.runs != contents.NOT_FOUND).sum())


def find_contents(
    context: SparkContext, of_images: Sequence[Part], of_features: Sequence[Part], model_name: str, usage: Usage
) -> Contents:
    """Find the contents of a run's images, and which of them have features by the same model in the table."""
    of_part = parts.map_tasks(context, digests_of_images, of_images, usage).collect()
    distinct = np.unique(np.concatenate(of_part)) if of_part else np.empty(0, "S32")
    runs = np.full(len(distinct), contents.NOT_FOUND)
    if not len(distinct):
        return Contents(of_part, distinct, runs, [])
    wanted = context.broadcast(distinct)
    found = parts.map_tasks(
        context, lambda part: find_known(part, wanted.value, model_name), of_features, usage
    ).collect()
    run_ids = sorted({run_id for known in found for run_id in known})
    # If two runs inferred the same content at the same time, the first of them in the order of the ids counts.
    for number in reversed(range(len(run_ids))):
        for known in found:
            if run_ids[number] in known:
                runs[known[run_ids[number]]] = number
    return Contents(of_part, distinct, runs, run_ids)


def digests_of_images(part: Part) -> Digests:
    """Return the digests of the contents of a file of IMAGES, in order."""
    batches = [contents.digests(batch["sha256"]) for batch in parts.read(part, ["sha256"], contents.NARROW_ROWS)]
    return np.concatenate(batches)


def find_known(part: Part, wanted: Digests, model_name: str) -> dict[str, Indices]:
    """Return the numbers of the wanted contents that a file of FEATURES has, by the run that inferred them."""

    def places() -> Iterator[tuple[Indices, pa.Array]]:
        for digests, batch in contents.read_keys(part):
            found = contents.search(digests, wanted)
            is_known = (found != contents.NOT_FOUND) & pc.equal(batch["model"], model_name).to_numpy(False)
            if is_known.any():
                yield found[is_known], batch["run_id"].filter(pa.array(is_known))

    return contents.by_run(places())


def shares_to_infer(found: Contents, of_images: Sequence[Part], task_slots: int) -> list[list[RowsOfPart]]:
    """Return the rows of images to infer: the first of each content without features, in equal shares, one per task.

    The number of shares does not depend on the number of files: 100,000 photographs of 5 MB are in 3,700 files.
    """
    digests = np.concatenate(found.of_part) if found.of_part else np.empty(0, "S32")
    _, first = np.unique(digests, return_index=True)
    rows = np.sort(first[found.runs == contents.NOT_FOUND])
    if not len(rows):
        return []
    count = min(len(rows), task_slots * math.ceil(len(rows) / (FILE_ROWS * task_slots)))
    ends = np.cumsum([0, *map(len, found.of_part)])
    shares = []
    for share in np.array_split(rows, count):
        numbers = np.searchsorted(ends, share, side="right") - 1
        shares.append([RowsOfPart(of_images[n], share[numbers == n] - ends[n]) for n in np.unique(numbers)])
    return shares


def describe_images(part: Part, distinct: Digests, run_id_of: npt.NDArray[np.str_]) -> Iterator[pa.RecordBatch]:
    """Yield the IMAGE_INFO of a file of IMAGES. `run_id_of` has the run that inferred each of the distinct contents."""
    columns = [name for name in schemas.IMAGE_INFO.names if name != "features_run_id"]
    for batch in parts.read(part, columns, contents.NARROW_ROWS):
        places = contents.search(contents.digests(batch["sha256"]), distinct)
        values = [*(batch[name] for name in columns), pa.array(run_id_of[places].tolist(), pa.string())]
        yield pa.RecordBatch.from_arrays(values, schema=schemas.IMAGE_INFO)


def write_image_info(
    context: SparkContext,
    of_images: Sequence[Part],
    found: Contents,
    run_id: str,
    uri: str,
    reporter: progress.Reporter,
    usage: Usage,
) -> list[Part]:
    """Write the IMAGE_INFO of all images of the run, one file per task slot."""
    count = min(len(of_images), context.defaultParallelism)
    shares = [of_images[number::count] for number in range(count)]
    described = reporter.phase("describe", [parts.count_rows(share) for share in shares])
    known = context.broadcast((found.distinct, found.runs, [*found.run_ids, run_id]))  # NOT_FOUND is the last one

    def describe(share: Sequence[Part]) -> Part | None:
        distinct, runs, run_ids = known.value
        run_id_of = np.array(run_ids)[runs]
        with parts.Writer(uri, schemas.IMAGE_INFO) as writer:
            for part in share:
                for batch in described.counted(describe_images(part, distinct, run_id_of)):
                    writer.write(batch)
        return writer.part

    return [part for part in parts.map_tasks(context, describe, shares, usage).collect() if part is not None]


def run(run_uri: str, scratch_uri: str, warehouse_uri: str, model_uri: str) -> dict[str, object]:
    """Run the step and return its metrics.

    Raises:
        step.StepUnfinished: the plan or the ingest step has not finished.
        mobilenet.WrongModel: the file is not a model that model/export.py wrote.
        step.LostRows: not every content has been inferred exactly once, or an image is missing.
    """
    started = time.monotonic()
    name, run_id = mobilenet.model_name(model_uri), step.run_id(run_uri)
    with step.running(run_uri, "features") as (context, reporter):
        content = objects.read(model_uri)
        mobilenet.load(content)  # a wrong file fails once, here, instead of in every task
        plan = step.read_metrics(run_uri, "plan")
        reporter.plan_id = plan.get("plan_id")
        of_features = step.files_of(plan, "features")
        of_images = step.scratch_files(step.read_metrics(run_uri, "ingest"), "images")
        rows_in = parts.count_rows(of_images)
        search_usage, usage, info_usage = (parts.task_usage(context) for _ in range(3))
        reporter.phase("search")
        found = find_contents(context, of_images, of_features, name, search_usage)
        shares = shares_to_infer(found, of_images, context.defaultParallelism)
        log.info(
            "features: %d images in %d files have %d contents, of which %d have features; %d tasks, model %s",
            rows_in,
            len(of_images),
            len(found.distinct),
            found.known,
            len(shares),
            name,
        )
        model, inferences = context.broadcast(content), context.accumulator(0)
        inferred = reporter.phase("infer", [sum(len(one.rows) for one in share) for share in shares])

        def featurise_share(share: Sequence[RowsOfPart]) -> Iterator[pa.RecordBatch]:
            return inferred.counted(featurise(share, mobilenet.load(model.value), name, run_id, inferences))

        written = parts.write_dataset(
            context, shares, featurise_share, f"{warehouse_uri}/features/data", schemas.FEATURES, usage
        )
        new_images = write_image_info(
            context, of_images, found, run_id, f"{scratch_uri}/new_images", reporter, info_usage
        )
        rows_out, new = parts.count_rows(written), len(found.distinct) - found.known
        if not (rows_out == new and found.images == rows_in == parts.count_rows(new_images)):
            raise step.LostRows(
                f"{rows_in} images with {new} new contents, but {rows_out} features and "
                f"{parts.count_rows(new_images)} descriptions of images in {run_uri}"
            )
        return step.write_metrics(
            run_uri,
            "features",
            plan_id=plan.get("plan_id"),
            files={"features": written, "new_images": new_images},
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            passes=[search_usage.value, usage.value, info_usage.value],
            inferences=inferences.value,
            known=found.known,
            duplicates=rows_in - len(found.distinct),
            model=name,
        )


def main(argv: list[str] | None = None) -> None:
    """Run the step. `argv` defaults to the command-line arguments of the process."""
    parser = step.argument_parser("Compute MobileNetV2 features of every new content of a run.", EXAMPLE)
    step.add_uri(parser, "--scratch-uri", "folder for what the run needs only until it is published")
    step.add_uri(parser, "--warehouse-uri", "folder of the tables")
    parser.add_argument("--model-uri", required=True, help="URI of the .tflite file that `make release-parts` exports")
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.scratch_uri, arguments.warehouse_uri, arguments.model_uri)


if __name__ == "__main__":
    main()
