"""Measure how long the report of a run of many images takes: on the server, and until it can be used in Chromium.

The embeddings of the run are generated and published into the tables of the local AWS. The API server of Airflow, which
serves the report, runs as a process. `first` is the first request of the process, `then` the median of later ones.
"""

import argparse
import json
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import httpx
import numpy as np
import pyarrow as pa
from playwright.sync_api import Browser, sync_playwright

from benchmarks.publish import LABELS, GeneratedRun, aws_variables
from orchard.run.names import run_name
from orchard.run.publish import publish_run
from orchard.settings import Settings
from orchard.tables.catalog import open_catalog
from sandbox import airflow, aws
from sandbox.airflow import AirflowApi, run_path
from sandbox.processes import free_port, running, wait_for_port, wait_until

COMPONENTS = 64
ROUNDS = 10
DAG_ID = "fruit_features"
START_SECONDS = 120
READY = "body[data-map='drawn']"
# In milliseconds.
GOALS = {"page": 300, "neighbours": 300, "interactive": 2000}
EXAMPLE = """\
example:
  python -m benchmarks.ui --images 100000
"""


@dataclass(frozen=True)
class LabelledRun(GeneratedRun):
    """A run whose vectors are near the centre of their label, as those of photographs are."""

    def _vectors(self, rows: int) -> pa.Array:
        generator = np.random.default_rng(3)
        scale = np.linspace(1, 0.1, COMPONENTS)
        centres = generator.normal(0, 1, (LABELS, COMPONENTS)) * scale
        values = centres[np.arange(rows) % LABELS] + generator.normal(0, 0.3, (rows, COMPONENTS)) * scale
        offsets = np.arange(0, rows * COMPONENTS + 1, COMPONENTS, dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, values.astype(np.float32).ravel())


@contextmanager
def server(folder: Path, url: str) -> Iterator[tuple[AirflowApi, Mapping[str, str]]]:
    """Run Airflow's API server while the context is open, with Orchard's DAGs in its database."""
    port, passwords = free_port(), folder / "passwords.json"
    password = airflow.write_password(passwords)
    env = {
        **airflow.airflow_environment(folder / "airflow", url, "0123456789ab"),
        **airflow.server_environment(port, passwords),
    }
    airflow.migrate_airflow(env, folder / "airflow-db.log")
    log_file = folder / "api-server.log"
    with running(["airflow", "api-server"], log_file, env) as process:
        wait_for_port(port, process, log_file)
        api: AirflowApi = wait_until(
            lambda: AirflowApi.log_in(port, password),
            "the API server",
            timeout_seconds=START_SECONDS,
            retry_on=(httpx.HTTPError,),
        )
        with running(["airflow", "dag-processor"], folder / "dag-processor.log", env):
            wait_until(lambda: api.request("GET", f"dags/{DAG_ID}").is_success, DAG_ID, timeout_seconds=START_SECONDS)
        yield api, env


def publish(url: str, run: LabelledRun) -> None:
    """Publish a run into the tables of the local AWS."""
    s3: Any = aws.client("s3", url)
    s3.create_bucket(Bucket=aws.BUCKET, CreateBucketConfiguration={"LocationConstraint": aws.REGION})
    run.write(s3, [])
    with aws_variables(url):
        catalog = open_catalog(boto3.Session(region_name=aws.REGION), run.settings)
        publish_run(s3, catalog, run.settings, run.plan, None)


def finish_run(api: AirflowApi, database: Path, run_id: str, run: LabelledRun) -> None:
    """Store in Airflow what the run's task `plan` has returned, and that the run has succeeded."""
    entry = {"key": "return_value", "value": dict(run.plan), "map_index": -1}
    api.call("POST", f"{run_path(DAG_ID, run_id)}/taskInstances/plan/xcomEntries", entry)
    # Airflow's API leaves a run with teardowns to the scheduler.
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("UPDATE dag_run SET state = 'success', end_date = start_date WHERE run_id = ?", [run_id])


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def server_times(address: str, token: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each route: of the first request, and the median of the later ones."""
    with httpx.Client(cookies={"_token": token}, timeout=START_SECONDS) as client:

        def ask(path: str) -> httpx.Response:
            return client.get(address + path).raise_for_status()

        first = {name: milliseconds(lambda name=name: ask(name)) for name in ("", "map", "figures", "suspects")}  # type: ignore[misc]
        paths = ask("map").json()["paths"]
        addresses = {name: [name] for name in first} | {
            "neighbours": [f"neighbours?path={quote(path)}" for path in paths[:: max(1, len(paths) // rounds)]],
            "coordinates": [f"coordinates?component={number}" for number in range(2, 2 + rounds)],
        }
        first["neighbours"] = milliseconds(lambda: ask(addresses["neighbours"][0]))
        first["coordinates"] = milliseconds(lambda: ask(addresses["coordinates"][0]))

        def median(found: list[str]) -> float:
            return statistics.median(
                milliseconds(lambda number=number: ask(found[number % len(found)]))  # type: ignore[misc]
                for number in range(rounds)
            )

        then = {name: median(found) for name, found in addresses.items()}
    return {name or "page": {"first": first[name], "then": then[name]} for name in then}


def browser_times(address: str, token: str, rounds: int) -> dict[str, float]:
    """Return the milliseconds until the map is drawn: in a new browser, and the median in one that has the scripts."""

    def load(browser: Browser) -> float:
        page = browser.contexts[0].new_page()
        try:
            return milliseconds(lambda: (page.goto(address), page.wait_for_selector(READY)))
        finally:
            page.close()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.add_cookies([{"name": "_token", "value": token, "url": address.partition("/orchard/")[0]}])
        first = load(browser)
        then = statistics.median(load(browser) for _ in range(rounds))
        browser.close()
    return {"first": first, "then": then}


def measure(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of each route and of the browser, for a run of so many images."""
    with aws.local_aws(folder / "aws", free_port(), folder / "local_aws.log") as url, server(folder, url) as (api, env):
        variables = {name: value for name, value in env.items() if name.startswith("ORCHARD_")}
        settings = Settings.from_env(variables, env["AIRFLOW__API__BASE_URL"])
        due = datetime(2026, 11, 22, 2, tzinfo=UTC)
        run_id = api.trigger(DAG_ID, {}, run_after=due)  # no scheduler runs it
        run = LabelledRun(settings, run_name(due, run_id, settings.deployment), images)
        publish(url, run)
        finish_run(api, folder / "airflow/airflow.db", run_id, run)
        address = f"{api.url}/orchard/dags/{DAG_ID}/runs/{quote(run_id)}/"
        times = server_times(address, api.token, rounds)
        times["interactive"] = browser_times(address, api.token, rounds)
    return {"images": images, "components": COMPONENTS, "labels": LABELS, "milliseconds": times}


def table(result: Mapping[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    lines = ["| ms | first | then | goal |", "|---|---|---|---|"]
    for name, found in result["milliseconds"].items():
        lines.append(f"| {name} | {found['first']:,.0f} | {found['then']:,.0f} | {GOALS.get(name, '')} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the measurements as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ui",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=100_000, help="images of the run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="requests of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    if shutil.which("chromium") is None:
        parser.error("there is no Chromium: install it with `apt-get install chromium`")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.images, arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


if __name__ == "__main__":
    main()
