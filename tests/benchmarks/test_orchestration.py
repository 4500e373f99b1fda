from pathlib import Path

from benchmarks import orchestration


def test_a_gap_between_samples_ends_the_time_in_a_slot() -> None:
    moments = [0.0, 0.5, 1.0, 10.0, 10.5, 11.0, 11.5, 20.0]
    assert orchestration.longest(moments) == 1.5


def test_a_single_sample_takes_no_time() -> None:
    assert orchestration.longest([3.0]) == 0


def test_the_file_of_the_dag_is_parsed_as_airflow_parses_it(tmp_path: Path) -> None:
    assert orchestration.parse_seconds(tmp_path) > 0
