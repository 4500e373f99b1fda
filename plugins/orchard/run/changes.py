"""Find out what has changed in a dataset since its published run."""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from orchard.cluster.instances import task_slots
from orchard.cluster.sizing import Workers
from orchard.dataset.listing import LISTED, REMEDIES, Listing, NoImages, list_images
from orchard.errors import PermanentError
from orchard.run.difference import KNOWN, Difference, Rules, compare, known_rows
from orchard.run.names import run_id_of
from orchard.run.params import FROZEN, REFIT, RunParams
from orchard.run.plan_files import delete_made_from_plan, write_files, write_plan
from orchard.run.row_files import RowWriter
from orchard.run.sentence import plan_sentence
from orchard.run.size import size_run
from orchard.settings import Settings
from orchard.tables.history import recent_runs
from orchard.tables.state import PublishedState, dataset_rows, feature_files, pca_basis, published_state

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

KNOWN_COLUMNS = {
    "images": ["path", "etag", "sha256", "format", "width", "height", "features_run_id", "run_id"],
    "rejects": ["path", "etag", "reason", "message", "run_id"],
}
# The params that the plan shows.
PLANNED_PARAMS = ("n_components", "pca_mode", "max_bytes", "max_pixels", "hold_minutes")
# Fewer have no variance.
MIN_IMAGES = 2
REJECTED_BEFORE = "rejected by an earlier run; replace them, or set retry_rejects"


class TooFewImages(PermanentError):
    """The dataset has fewer readable images than the PCA needs."""

    def __init__(self, dataset_uri: str, readable: int, params: RunParams) -> None:
        least = 1 if params.pca_mode == FROZEN else MIN_IMAGES
        if readable < least:
            remedy = f"a PCA needs at least {least}: add images, or use another dataset_uri"
        else:
            remedy = (
                f"n_components is {params.n_components}: use at most {readable}, or a share of the variance such as "
                "0.95"
            )
        super().__init__(f"{dataset_uri} has {readable} readable images, but {remedy}")


class TooManyLost(PermanentError):
    """The dataset has far fewer images than its published run: a mistake must not replace a good night."""

    def __init__(self, dataset_uri: str, readable: int, published: int, run_id: str, max_lost_ratio: float) -> None:
        super().__init__(
            f"too few images: {readable} below {dataset_uri} of the {published} that run {run_id} has published, a "
            f"loss of {1 - readable / published:.3f}, over max_lost_ratio {max_lost_ratio:g}. That run stays "
            "published. Upload the images again, or set a higher max_lost_ratio"
        )


class TooManyRejects(PermanentError):
    """More images cannot be read than the run tolerates. The plan shows this before anything is read."""

    def __init__(self, uri: str, listed: int, reasons: Mapping[str, int], max_reject_ratio: float) -> None:
        rejects = sum(reasons.values())
        super().__init__(
            f"{rejects} of {listed} images below {uri} cannot be read, a ratio of {rejects / listed:.3f}, over "
            f"max_reject_ratio {max_reject_ratio:g}: {describe_rejects(reasons)}. Or set a higher max_reject_ratio"
        )


class DatasetEmptied(NoImages):
    """A dataset's prefix contains no image, but the tables have images of it."""

    def __init__(self, uri: str, ignored: Mapping[str, int], run_id: str) -> None:
        super().__init__(uri, ignored)
        remedy = f"The tables still have the images of run {run_id}: to remove them, run the DAG forget_dataset"
        self.args = (f"{self}. {remedy}",)


class NoBasis(PermanentError):
    """A run with a frozen basis finds none that fits."""

    def __init__(self, dataset_uri: str, fault: str) -> None:
        super().__init__(
            f"pca_mode is {FROZEN}, but there is no basis for {dataset_uri}: {fault}. Run once with pca_mode {REFIT} "
            "and full_refresh"
        )


class IncompletePublication(RuntimeError):
    """The tables show only a part of a run. A retry may succeed."""

    def __init__(self, dataset_uri: str, run_id: str) -> None:
        super().__init__(
            f"run {run_id} of {dataset_uri} is not published completely: wait until its task `publish` has finished, "
            "or clear that task"
        )


def describe_rejects(reasons: Mapping[str, int]) -> str:
    """Return how many images are rejected for each reason, with the remedy.

    >>> describe_rejects({"empty": 2})
    '2 empty (upload them again, or delete them)'
    """
    most_common = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason} ({REMEDIES.get(reason, REJECTED_BEFORE)})" for reason, count in most_common)


@dataclass(frozen=True, kw_only=True)
class Code:
    """The version of a run's release, and what it does with an image: the names of its model and of its decoder.

    The version is None if the run was planned by an Orchard that did not record it. `make release-list` reads it.
    """

    release: str | None
    model: str
    decoder: str


def plan_changes(
    s3: "S3Client",
    catalog: Catalog,
    settings: Settings,
    plan: Mapping[str, Any],
    params: RunParams,
    code: Code,
    existing: Workers | None = None,
) -> dict[str, Any]:
    """Compare a dataset with its published run, and write what the steps need. Return the counts.

    `existing` are the workers of the run's cluster, if its size is decided. If the run would publish what is published
    already, `nothing_to_do` is true, `why` says so, and nothing is written. `sentence` is one line about the plan.

    Raises:
        NoImages: the dataset's prefix contains no image.
        CannotList: the dataset's bucket does not exist.
        TooManyRejects: more images cannot be read than the run tolerates.
        TooManyLost: more images are gone than the run tolerates.
        TooFewImages: there are fewer readable images than components.
        TooExpensive: the estimated price is above the limit of the run.
        BadPrices: the file of prices cannot be used.
        NoBasis: the PCA's basis is frozen, and there is none for the dataset and the model.
        TwoRowsOfOneObject: the tables have several rows for a path.
    """
    started, planned_at, dataset_uri = time.monotonic(), datetime.now(UTC), plan["dataset_uri"]
    base = published_state(catalog, settings, dataset_uri)
    with tempfile.TemporaryDirectory(prefix="orchard-plan-") as name:
        folder = Path(name)
        with RowWriter(folder, "listed", LISTED) as listed:
            listing = list_dataset(s3, dataset_uri, params, base, listed)
        with RowWriter(folder, "known", KNOWN) as known:
            for batch in published_rows(catalog, settings, dataset_uri, base):
                known.write(batch)
        difference = compare(folder, listed, known, rules_of(base, params, code), listing.reasons)
        log_difference(difference, dataset_uri, base)
        check_difference(difference, dataset_uri, base, params)
        counts = {
            "run_id": run_id_of(plan["run_uri"]),
            "dataset": dataset_uri,
            "base_run_id": base.run_id if base else None,
            "base_is_complete": base is None or base.is_complete,
            **asdict(code),
            **{name: getattr(params, name) for name in PLANNED_PARAMS},
            "planned_at": planned_at.isoformat(),
            "bytes_listed": listing.bytes,
            **difference.counts(),
            "ignored": dict(listing.ignored),
        }
        why = why_nothing_to_do(difference, dataset_uri, base, params)
        if not why:
            earlier = recent_runs(catalog, settings, planned_at)
            size = size_run(difference, dataset_uri, params, settings, planned_at, earlier, existing)
            slots = task_slots(params.instance_type, size.workers.total)
            counts |= {
                "instance_type": params.instance_type,
                "core_instances": size.core_instances,
                "task_instances": size.task_instances,
                "task_slots": slots,
                "bytes_to_read": difference.bytes_to_read,
                "estimate": {**asdict(size), "usd_with_spot": list(size.usd_with_spot)},  # as in JSON
            }
            delete_made_from_plan(s3, plan["run_uri"])
            known_basis = find_basis if params.pca_mode == FROZEN else basis_before
            basis = known_basis(catalog, settings, dataset_uri, base, code)
            files: dict[str, Any] = {
                **write_files(s3, folder, plan["scratch_uri"], difference, basis, slots),
                "features": feature_files(catalog, settings),
            }
            seconds = round(time.monotonic() - started, 3)
            write_plan(s3, plan["run_uri"], {"step": "plan", **counts, "seconds": seconds, "files": files})
    if why:
        log.info("plan: %s", why)
    seconds = round(time.monotonic() - started, 3)
    changes = {**counts, "seconds": seconds, "run_uri": plan["run_uri"], "nothing_to_do": bool(why), "why": why}
    return {**changes, "sentence": plan_sentence(changes)}


def list_dataset(
    s3: "S3Client", dataset_uri: str, params: RunParams, base: PublishedState | None, listed: RowWriter
) -> Listing:
    """List the images of a dataset. Log how many other objects it has.

    Raises:
        NoImages: there is no image.
        CannotList: S3 refuses to list the dataset.
    """
    try:
        listing = list_images(s3, dataset_uri, params.max_bytes, listed.write)
    except NoImages as error:
        if base is None:
            raise
        raise DatasetEmptied(dataset_uri, error.ignored, base.run_id) from error
    others = sum(listing.ignored.values())
    if others:
        level = logging.WARNING if others > listing.images else logging.INFO
        endings = ", ".join(f"{count} {ending}" for ending, count in listing.ignored.items())
        log.log(level, "plan: %d objects are ignored, %d are images: %s", others, listing.images, endings)
    return listing


def published_rows(
    catalog: Catalog, settings: Settings, dataset_uri: str, base: PublishedState | None
) -> Iterator[pa.RecordBatch]:
    """Yield the images and rejects of the published run, as rows of KNOWN. Yield nothing if there is no such run."""
    if base is not None and base.is_complete:
        for table, columns in KNOWN_COLUMNS.items():
            yield from known_rows(dataset_rows(catalog, settings, table, dataset_uri, columns), base.run_id)


def rules_of(base: PublishedState | None, params: RunParams, code: Code) -> Rules:
    """Return what a run may take over from the published run."""
    if base is None or not base.is_complete or params.full_refresh:
        return Rules(keep_images=False, keep_rejects=False, max_pixels=params.max_pixels)
    limits = (code.decoder, params.max_bytes, params.max_pixels)
    return Rules(
        keep_images=base.model == code.model,
        keep_rejects=not params.retry_rejects and (base.decoder, base.max_bytes, base.max_pixels) == limits,
        max_pixels=params.max_pixels,
    )


def log_difference(difference: Difference, dataset_uri: str, base: PublishedState | None) -> None:
    """Log what has changed, and warn of the images that cannot be read."""
    log.info(
        "plan: %d images below %s: %d new, %d changed, %d deleted, %d unchanged; %s",
        difference.listed,
        dataset_uri,
        difference.new,
        difference.changed,
        difference.deleted,
        difference.unchanged,
        f"compared with run {base.run_id}" if base else "no run of it is published",
    )
    if difference.rejects:
        log.warning(
            "plan: %d of %d images below %s cannot be read and will be rejected: %s",
            sum(difference.rejects.values()),
            difference.listed,
            dataset_uri,
            describe_rejects(difference.rejects),
        )


def check_difference(difference: Difference, dataset_uri: str, base: PublishedState | None, params: RunParams) -> None:
    """Check that a dataset has enough readable images for a run.

    Raises:
        TooManyRejects: more images cannot be read than the run tolerates.
        TooManyLost: more images are gone than the run tolerates.
        TooFewImages: there are fewer readable images than components.
    """
    if sum(difference.rejects.values()) / difference.listed > params.max_reject_ratio:
        raise TooManyRejects(dataset_uri, difference.listed, difference.rejects, params.max_reject_ratio)
    if base is not None and base.images and difference.readable < (1 - params.max_lost_ratio) * base.images:
        raise TooManyLost(dataset_uri, difference.readable, base.images, base.run_id, params.max_lost_ratio)
    # A frozen basis embeds a single image, too.
    least = 1 if params.pca_mode == FROZEN else max(MIN_IMAGES, params.n_components)
    if difference.readable < least:
        raise TooFewImages(dataset_uri, difference.readable, params)


def why_nothing_to_do(difference: Difference, dataset_uri: str, base: PublishedState | None, params: RunParams) -> str:
    """Return why a run would publish what is published already, with the numbers. Return "" if it would not.

    With another model, all images have changed.
    """
    if base is None or not base.is_complete:
        return ""
    if difference.new or difference.changed or difference.deleted:
        return ""
    if params.pca_mode != FROZEN and (base.pca_mode, base.n_components) != (REFIT, params.n_components):
        return ""
    return (
        f"nothing to do: {difference.listed} images below {dataset_uri}, of which {difference.rejects_kept} stay "
        f"rejected, 0 new, 0 changed, 0 deleted; run {base.run_id} stays published"
    )


def find_basis(
    catalog: Catalog, settings: Settings, dataset_uri: str, base: PublishedState | None, code: Code
) -> pa.Table:
    """Return the basis of a dataset's published run, as one row of the table `pca_models`.

    Raises:
        NoBasis: there is none, or it is of another model.
        IncompletePublication: the run is being published, or its publication was broken off.
    """
    if base is not None and not base.is_complete:
        raise IncompletePublication(dataset_uri, base.run_id)
    if base is None or base.pca_model is None:
        raise NoBasis(dataset_uri, "no run with a basis is published")
    if base.model != code.model:
        raise NoBasis(dataset_uri, f"its basis is of model {base.model}, not {code.model}")
    basis = pca_basis(catalog, settings, dataset_uri, base.pca_model)
    if basis is None:
        raise NoBasis(dataset_uri, f"table pca_models has no row {base.pca_model}")
    return basis


def basis_before(
    catalog: Catalog, settings: Settings, dataset_uri: str, base: PublishedState | None, code: Code
) -> pa.Table | None:
    """Return the basis of a dataset's published run, with which the step `pca` compares a new one.

    Return None if there is none, or it is of another model. If it cannot be read, log a warning and return None: a run
    that fits a new basis does not need it.
    """
    if base is None or not base.is_complete or base.pca_model is None or base.model != code.model:
        return None
    try:
        return pca_basis(catalog, settings, dataset_uri, base.pca_model)
    except Exception as error:  # PyArrow has no common class for what is wrong with a file
        log.warning("plan: the basis of run %s cannot be read, so that there is no drift: %s", base.run_id, error)
        return None
