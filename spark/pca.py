"""Step 3: centred PCA over all current images of the dataset.

The current images are those that the plan keeps (`kept_images/`) and those that the features step describes
(`new_images/`). Their features are in the files of the table `features` that the plan lists, and in those that the
features step has written. Writes new files of the table `embeddings` (one vector per image), `pca_model/` (one row, if
a basis was fitted) and `pca.metrics.json`. Rewrites small files of the table `features`, if there are many.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import RDD, Accumulator, SparkContext

from orchard_spark import compaction, locations, parts, progress, schemas, step
from orchard_spark.locations import CurrentImages, Selection
from orchard_spark.moments import CannotFit, Drift, Moments, Pca, fit
from orchard_spark.neighbours import LabelAccuracy, Sample
from orchard_spark.parts import Part, TaskUsage
from orchard_spark.prefetch import prefetch

# 10 MB of features. Larger batches are hardly faster, and take more of a worker's memory.
BATCH_ROWS = 2048
# A content can have any number of images. 8,192 vectors of 1280 components take 42 MB.
IMAGE_ROWS = 8192
# The moments of 1280 columns are 13 MB. A merging task, and the driver, each hold about this many at a time.
FAN_IN = 4
# A share of the variance of the new images outside of the basis that is larger than that of the fit by more than this.
DRIFT_WARNING = 0.1
# Moments, and their position in the order of addition.
Numbered = tuple[int, Moments]
Usage = Accumulator[list[TaskUsage]]

EXAMPLE = """example:
  spark-submit --py-files orchard_spark.zip pca.py --warehouse-uri s3://BUCKET/warehouse \\
      --run-uri s3://BUCKET/runs/fruits/20261122T020000-1a2b3c --n-components 0.95 --pca-mode refit
"""

log = logging.getLogger("pca")


def to_matrix(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Return the features of a batch as an array [rows, 1280]."""
    values: npt.NDArray[np.float32] = batch["features"].flatten().to_numpy(zero_copy_only=False)
    return values.reshape(batch.num_rows, -1)


def read_features(selections: Iterable[Selection]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the selected rows of files of FEATURES, in order, in matrices of at most 2,048 rows."""
    for selected in selections:
        for batch in parts.read_rows(selected.part, ["features"], selected.rows, BATCH_ROWS):
            yield to_matrix(batch)


def counted_features(selections: Sequence[Selection]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the features of images: each row as often as images have its content, as scikit-learn would see them."""
    for selected in selections:
        first = 0
        for matrix in prefetch(read_features([selected])):
            counts = selected.counts[first : first + len(matrix)]
            first += len(matrix)
            rows = np.repeat(np.arange(len(matrix)), counts)
            for start in range(0, len(rows), BATCH_ROWS):
                yield matrix if len(rows) == len(matrix) else matrix[rows[start : start + BATCH_ROWS]]


def count_images(selections: Iterable[Selection]) -> int:
    """Return the number of images whose features are in the selected rows."""
    return sum(int(selected.counts.sum()) for selected in selections)


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
    context: SparkContext, selections: Sequence[Selection], usage: Usage, reporter: progress.Reporter | None = None
) -> Moments:
    """Return the moments of the features of all images, in one pass over them, with one task per task slot.

    Moments are 13 MB for any number of rows, so fewer tasks send less data.
    """
    count = min(len(selections), context.defaultParallelism)
    shares = [(number, selections[number::count]) for number in range(count)]
    fitted = None if reporter is None else reporter.phase("fit", [count_images(share) for _, share in shares])

    def sum_up(share: tuple[int, Sequence[Selection]]) -> Numbered:
        matrices = counted_features(share[1])
        return share[0], Moments.of_batches(matrices if fitted is None else fitted.counted(matrices))

    sums = parts.map_tasks(context, sum_up, shares, usage)
    merged = dict(merge(sums, count).collect())
    return reduce(add, (merged[number] for number in sorted(merged)))


def embeddings_batch(
    images: pa.Table, vectors: npt.NDArray[np.float32], dataset: str, pca_model: str, run_id: str
) -> pa.RecordBatch:
    """Return a batch of EMBEDDINGS from images (path, label, sha256) and their vectors [rows, n_components]."""
    columns = {
        "dataset": [dataset] * len(vectors),
        "path": images["path"].combine_chunks(),
        "label": images["label"].combine_chunks(),
        "sha256": images["sha256"].combine_chunks(),
        "vector": schemas.to_list_array(vectors),
        "pca_model": [pca_model] * len(vectors),
        "run_id": [run_id] * len(vectors),
    }
    return pa.RecordBatch.from_pydict(columns, schema=schemas.EMBEDDINGS)


def embed(
    selections: Sequence[Selection], images: pa.Table, pca: Pca, dataset: str, run_id: str, drift: Drift, sample: Sample
) -> Iterator[pa.RecordBatch]:
    """Yield the EMBEDDINGS of the images whose features are in some rows of files of FEATURES.

    `images` has the columns of `locations.LOCATED`: each image with the position of its features in the selections.
    `drift` collects the variance of the images that are new in this run, and the mean of all. `sample` collects the
    vectors of the sample.
    """
    images = images.sort_by([("position", "ascending"), ("path", "ascending")])
    positions = images["position"].to_numpy()
    first = 0
    for matrix in prefetch(read_features(selections)):
        vectors = pca.transform(matrix)
        begin, end = np.searchsorted(positions, [first, first + len(matrix)])
        drift.add_current(matrix, np.bincount(positions[begin:end] - first, minlength=len(matrix)))
        for start in range(begin, end, IMAGE_ROWS):
            of_batch = images.slice(start, min(IMAGE_ROWS, end - start))
            rows = of_batch["position"].to_numpy() - first
            drift.add(pca, matrix, vectors, rows[of_batch["is_new"].to_numpy()])
            of_images = vectors[rows]
            sample.add(of_batch, of_images)
            yield embeddings_batch(of_batch, of_images, dataset, pca.name, run_id)
        first += len(matrix)


def write_embeddings(
    context: SparkContext,
    current: CurrentImages,
    selections: Sequence[Selection],
    pca: Pca,
    dataset: str,
    run_id: str,
    uri: str,
    reporter: progress.Reporter,
    usage: Usage,
) -> tuple[list[Part], Drift, Sample]:
    """Write the EMBEDDINGS of all current images. Return the files, the drift of the new images, and the sample.

    Spark's shuffle brings the path and the label of each image to the task that reads its features.
    """
    groups = locations.in_groups(selections, context.defaultParallelism)
    fitted, count = context.broadcast(pca), current.images
    embedded = reporter.phase("embed", [count_images(group) for group in groups])

    def write_group(group: Sequence[Selection], images: pa.Table) -> tuple[Part | None, Drift, Sample]:
        drift, sample = Drift(), Sample.of(count)
        with parts.Writer(uri, schemas.EMBEDDINGS) as writer:
            for batch in embedded.counted(embed(group, images, fitted.value, dataset, run_id, drift, sample)):
                writer.write(batch)
        return writer.part, drift, sample

    written = locations.map_groups(context, current, groups, write_group, usage)
    drift = reduce(add, (drift for _, drift, _ in written), Drift())
    sample = reduce(add, (sample for _, _, sample in written), Sample.of(count))
    return [part for part, _, _ in written if part is not None], drift, sample


def measure_accuracy(sample: Sample) -> LabelAccuracy:
    """Compute the label accuracy of a sample, and log it."""
    started = time.monotonic()
    found = sample.label_accuracy()
    if found.accuracy is None:
        log.info("pca: no label accuracy: the sample has fewer than two labels, or no label with two contents")
    else:
        log.info(
            "pca: label accuracy %.4f: of %d sampled images of %d labels, the share whose nearest other image has the "
            "same label; %.1f s",
            found.accuracy,
            found.images,
            found.labels,
            time.monotonic() - started,
        )
    return found


def pca_model_table(pca: Pca, dataset: str, model: str, run_id: str) -> pa.Table:
    """Return a table of PCA_MODELS, whose only row is this PCA."""
    row = {
        "pca_model": pca.name,
        "dataset": dataset,
        "model": model,
        "n_samples_": pca.n_samples_,
        "n_components_": len(pca.components_),
        "mean_": pca.mean_.tolist(),
        "components_": pca.components_.tolist(),
        "explained_variance_": pca.explained_variance_.tolist(),
        "explained_variance_ratio_": pca.explained_variance_ratio_.tolist(),
        "run_id": run_id,
    }
    return pa.Table.from_pylist([row], schema=schemas.PCA_MODELS)


def read_pca(basis: Sequence[Part]) -> Pca:
    """Return the PCA of a file of PCA_MODELS with one row.

    Raises:
        CannotFit: there is none.
    """
    if not basis:
        raise CannotFit("pca_mode is frozen, but the plan lists no basis of an earlier run")
    columns = ["n_samples_", "mean_", "components_", "explained_variance_", "explained_variance_ratio_"]
    (row,) = next(parts.read(basis[0], columns, 1)).to_pylist()
    return Pca(row["n_samples_"], *(np.array(row[name], np.float64) for name in columns[1:]))


def run(run_uri: str, warehouse_uri: str, n_components: float, pca_mode: str) -> dict[str, object]:
    """Run the step and return its metrics.

    Raises:
        step.StepUnfinished: the plan or the features step has not finished.
        CannotFit: see `orchard_spark.moments.fit`; or there is no basis for the mode "frozen".
        locations.NoFeatures: images have no features in the table.
        step.LostRows: the number of embeddings differs from the number of images.
    """
    started = time.monotonic()
    run_id = step.run_id(run_uri)
    with step.running(run_uri, "pca") as (context, reporter):
        plan, featurised = step.read_metrics(run_uri, "plan"), step.read_metrics(run_uri, "features")
        reporter.plan_id = plan.get("plan_id")
        reporter.phase("locate")
        dataset, of_table = plan["dataset"], step.files_of(plan, "features")
        locate_usage, fit_usage, embed_usage, compact_usage = (parts.task_usage(context) for _ in range(4))
        current = locations.find_current(
            context, step.scratch_files(plan, "kept_images"), step.scratch_files(featurised, "new_images"), locate_usage
        )
        of_features = [*of_table, *step.files_of(featurised, "features")]
        selections = locations.locate(context, current, of_features, featurised["model"], locate_usage)
        log.info(
            "pca: %d images with %d contents; features in %d of %d files",
            current.images,
            len(current.keys),
            len(selections),
            len(of_features),
        )
        if not current.images:
            raise CannotFit("the dataset has no readable image: see the rejects of the run")
        basis = step.files_of(plan, "basis")
        before = read_pca(basis) if basis or pca_mode == "frozen" else None
        if before is not None and pca_mode == "frozen":
            pca = before
        else:
            pca = fit(moments(context, selections, fit_usage, reporter), n_components)
        explained_variance = float(pca.explained_variance_ratio_.sum())
        log.info(
            "pca: %s: %d components explain %.4f of the variance of %d images, model %s",
            pca_mode,
            len(pca.components_),
            explained_variance,
            pca.n_samples_,
            pca.name,
        )
        embeddings, drift, sample = write_embeddings(
            context,
            current,
            selections,
            pca,
            dataset,
            run_id,
            f"{warehouse_uri}/embeddings/data",
            reporter,
            embed_usage,
        )
        rows_out = parts.count_rows(embeddings)
        if rows_out != current.images or (pca_mode == "refit" and pca.n_samples_ != current.images):
            raise step.LostRows(
                f"{current.images} images, {pca.n_samples_} in the fit, {rows_out} embeddings in {run_uri}"
            )
        if drift.share is not None and drift.share > 1 - explained_variance + DRIFT_WARNING:
            log.warning(
                "pca: %.4f of the variance of the %d new images lies outside of the basis, and %.4f of the variance of "
                "the images of the fit: the vectors describe the new images badly; run once with pca_mode refit",
                drift.share,
                drift.images,
                1 - explained_variance,
            )
        reporter.phase("finish")
        accuracy = measure_accuracy(sample)
        replaced = compaction.small_files([selected.part for selected in selections], of_table)
        compacted = compaction.rewrite(context, replaced, f"{warehouse_uri}/features/data", compact_usage)
        fitted = []
        if pca_mode == "refit":
            model = pca_model_table(pca, dataset, featurised["model"], run_id)
            fitted.append(parts.write_table(f"{run_uri}/pca_model", model))
        return step.write_metrics(
            run_uri,
            "pca",
            plan_id=plan.get("plan_id"),
            files={"embeddings": embeddings, "pca_model": fitted, "compacted": compacted, "replaced": replaced},
            rows_in=current.images,
            rows_out=rows_out,
            started=started,
            passes=[locate_usage.value, fit_usage.value, embed_usage.value, compact_usage.value],
            duplicates=current.images - current.contents,
            n_components=len(pca.components_),
            explained_variance=explained_variance,
            pca_model=pca.name,
            pca_mode=pca_mode,
            drift={
                "new": drift.share,
                "fit": 1 - explained_variance,
                "shift": drift.shift(before) if before is not None else None,
            },
            label_accuracy=asdict(accuracy),
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
    parser = step.argument_parser("Compute the vector of every current image of a dataset with a centred PCA.", EXAMPLE)
    step.add_uri(parser, "--warehouse-uri", "folder of the tables")
    parser.add_argument(
        "--n-components",
        required=True,
        type=n_components,
        help="as in scikit-learn: a number of components (50), or the share of the variance to keep (0.95)",
    )
    parser.add_argument(
        "--pca-mode",
        choices=("refit", "frozen"),
        default="refit",
        help="fit a basis to the current images, or use the one that the plan lists (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.warehouse_uri, arguments.n_components, arguments.pca_mode)


if __name__ == "__main__":
    main()
