"""The published runs of a dataset over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchard.report.run_rows import RunFigures


@dataclass(frozen=True)
class History:
    """The published runs of a dataset, and the run_id that Airflow knows each by. `datasets` can be chosen."""

    datasets: Sequence[str]
    dataset: str
    runs: Sequence[RunFigures]
    airflow_run_ids: Mapping[str, str]
