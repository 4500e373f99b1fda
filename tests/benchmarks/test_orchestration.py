from pathlib import Path

from benchmarks import orchestration


def test_the_longest_time_in_a_slot_ends_at_a_gap() -> None:
    moments = [0.0, 0.5, 1.0, 10.0, 10.5, 11.0, 11.5, 20.0]
    assert orchestration.longest(moments) == 1.5


def test_what_was_seen_once_took_no_time() -> None:
    assert orchestration.longest([3.0]) == 0


def test_the_dags_file_is_parsed_as_airflow_would(tmp_path: Path) -> None:
    assert orchestration.parse_seconds(tmp_path) > 0
