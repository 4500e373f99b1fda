"""Other engines than pyiceberg read the tables, and maintain them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import duckdb
import pytest

from orchard.tables.catalog import TABLES
from tests.plugins.deployed import REPLACED, Deployment
from tests.plugins.runs import Run

# Runs SQL, in which {images} stands for the table `images`, and returns the rows.
Query = Callable[[str], list[dict[str, Any]]]
README = Path(__file__).parents[3] / "README.md"


def statement_in_readme(dataset: str) -> str:
    """Return the statement of the README that joins images and features, for a dataset."""
    (statement,) = re.findall(r"```sql\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return re.sub(r"orchard\.(\w+)", r"{\1}", statement).replace("s3://BUCKET/images/", dataset)


@pytest.fixture
def other(first: Run) -> Run:
    """A run of another dataset. The first run has inferred one of its contents, and another one at the same time."""
    name = "20261124T020000-cccccc"
    return Run(first.bucket, name, f"s3://{first.bucket}/apples/", images=3, folder="apples", known={0: first.name})


@pytest.fixture
def published(deployed: Deployment, first: Run, second: Run, other: Run) -> Deployment:
    """A deployment with two runs of one dataset, and one of another."""
    for run in (first, second, other):
        deployed.publish(run)
    return deployed


def names_for_duckdb(deployed: Deployment) -> dict[str, str]:
    return {name: f"iceberg_scan('{deployed.table(name).metadata_location}')" for name in TABLES}


@pytest.fixture
def in_duckdb(deployed: Deployment, aws_url: str) -> Query:
    """DuckDB with its Iceberg extension. It reads the metadata and the files itself."""
    connection = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):
        spec = find_spec(f"duckdb_extension_{name}")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        (file,) = Path(spec.submodule_search_locations[0]).rglob("*.duckdb_extension")
        connection.execute(f"LOAD '{file}'")
    connection.execute(
        "CREATE SECRET (TYPE s3, KEY_ID 'local', SECRET 'local', REGION 'eu-west-1', USE_SSL false, URL_STYLE 'path', "
        f"ENDPOINT '{aws_url.removeprefix('http://')}')"
    )

    def query(sql: str) -> list[dict[str, Any]]:
        result = connection.sql(sql.format_map(names_for_duckdb(deployed)))
        return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]

    return query


@pytest.fixture
def in_spark(deployed: Deployment, aws_url: str) -> Iterator[Query]:
    """Spark with Iceberg's own runtime, as a process. It finds the tables in the Glue catalog."""
    program = [sys.executable, str(Path(__file__).with_name("spark_sql.py")), aws_url, deployed.settings.warehouse_uri]
    names = {name: f"glue.{deployed.settings.catalog_database}.{name}" for name in TABLES}
    names["system"] = "glue.system"
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = pipe(process.stdin), pipe(process.stdout)

        def query(sql: str) -> list[dict[str, Any]]:
            stdin.write(" ".join(sql.format_map(names).split()) + "\n")
            stdin.flush()
            answer = stdout.readline()
            assert answer, f"Spark failed: {sql}"
            rows: list[dict[str, Any]] = json.loads(answer)
            return rows

        yield query
        stdin.close()
    assert process.returncode == 0


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def sorted_rows(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the values of rows in an order that does not depend on the engine, with texts for times and maps."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            value = sorted(value.items())
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return [list(item) for item in value]
        return value.replace(tzinfo=None).isoformat(" ") if hasattr(value, "isoformat") else value

    return sorted((tuple(plain(row[name]) for name in sorted(row)) for row in rows), key=str)


def check_reads(query: Query, deployed: Deployment, runs: list[Run]) -> None:
    """Check that an engine reads the same rows as pyiceberg, and the features of each image once."""
    for name in TABLES:
        expected = sorted_rows(deployed.rows(name))
        assert sorted_rows(query(f"SELECT * FROM {{{name}}}")) == expected, name
        assert query(f"SELECT count(*) AS n FROM {{{name}}}") == [{"n": len(expected)}]
    for run in runs:
        found = query(statement_in_readme(run.dataset_uri))
        images = sorted((row["path"], float(int(row["sha256"], 16))) for row in run.rows("images").to_pylist())
        assert sorted((row["path"], row["features"][1]) for row in found) == images
        of_dataset = f"SELECT count(*) AS n FROM {{embeddings}} WHERE dataset = '{run.dataset_uri}'"
        assert query(of_dataset) == [{"n": run.images}], "files are found by their partition"


def test_duckdb_reads_counts_joins_and_travels_in_time(
    published: Deployment, in_duckdb: Query, first: Run, second: Run, other: Run
) -> None:
    check_reads(in_duckdb, published, [second, other])
    snapshots = published.runs()[0].snapshots
    for name in REPLACED:
        table = f"iceberg_scan('{published.table(name).metadata_location}', snapshot_from_id={snapshots[name]})"
        rows = in_duckdb(f"SELECT * FROM {table}")
        assert sorted_rows(rows) == sorted_rows(first.rows(name).to_pylist())


@pytest.mark.slow
def test_spark_reads_and_maintains_the_tables_and_the_next_run_is_published_as_before(
    published: Deployment, in_spark: Query, in_duckdb: Query, first: Run, second: Run, other: Run
) -> None:
    check_reads(in_spark, published, [second, other])
    snapshots = published.runs()[0].snapshots
    for name in REPLACED:
        rows = in_spark(f"SELECT * FROM {{{name}}} VERSION AS OF {snapshots[name]}")
        assert sorted_rows(rows) == sorted_rows(first.rows(name).to_pylist())

    before = {name: sorted_rows(published.rows(name)) for name in TABLES}
    steps_files = published.paths("features")
    for name in TABLES:
        table = f"'{published.settings.catalog_database}.{name}'"
        in_spark(f"CALL {{system}}.rewrite_data_files(table => {table}, options => map('rewrite-all', 'true'))")
        in_spark(f"CALL {{system}}.rewrite_manifests({table})")
        in_spark(
            f"CALL {{system}}.expire_snapshots(table => {table}, older_than => TIMESTAMP '2100-01-01 00:00:00', "
            "retain_last => 1)"
        )
        assert len(published.table(name).snapshots()) == 1
        assert sorted_rows(published.rows(name)) == before[name]
    assert not steps_files & published.paths("features"), "Spark has written all files anew"

    versions = published.versions()
    published.publish(second, write=False)
    assert published.versions() == versions, "the rows are the run's own"
    third = Run(
        first.bucket, "20261125T020000-dddddd", first.dataset_uri, images=8, rejects=1, base=second, kept=6, copies=1
    )
    published.publish(third)
    assert published.shows(third)
    assert published.shows(other)
    check_reads(in_spark, published, [third, other])
    check_reads(in_duckdb, published, [third, other])
