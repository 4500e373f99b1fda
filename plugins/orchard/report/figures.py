"""The figures of a published run: what the tables and its summary hold for the section with the plots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyiceberg.catalog import Catalog

from orchard.report.run_rows import Rejects, Variance, explained_variance, rejects_of_run
from orchard.settings import Settings

# How many rejects the page lists.
MOST_REJECTS = 200


@dataclass(frozen=True)
class Figures:
    """What the section with the figures shows of a published run."""

    dataset_uri: str
    summary: Mapping[str, Any]
    variance: Variance | None
    rejects: Rejects


def read_figures(catalog: Catalog, settings: Settings, summary: Mapping[str, Any]) -> Figures:
    """Read the figures of a run from the tables. `summary` is the content of its `summary.json`.

    Raises:
        PermanentError: the tables cannot be read, or the snapshot that shows the run has expired.
    """
    dataset_uri, run_id = str(summary["dataset_uri"]), str(summary["run_id"])
    return Figures(
        dataset_uri,
        summary,
        explained_variance(catalog, settings, dataset_uri, str(summary["pca_model"])),
        rejects_of_run(catalog, settings, dataset_uri, run_id, most=MOST_REJECTS),
    )
