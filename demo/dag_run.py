"""Run the DAG once in this process, with Airflow's own `dag.test`, and write how it ended: `python -m demo.dag_run`.

It is a program of its own because Airflow reads its configuration from the environment when it is imported.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.dag_processing.dagbag import DagBag


def run(dag_id: str, params: dict[str, Any]) -> dict[str, Any]:
    """Run a DAG to its end; return its state and that of each task.

    Raises:
        SystemExit: the DAG cannot be loaded.
    """
    bag = DagBag(conf.get_mandatory_value("core", "dags_folder"))
    dag = bag.get_dag(dag_id)
    if dag is None:
        raise SystemExit(f"no DAG {dag_id}: {bag.import_errors}")
    # dag.test of Airflow 3.3.2 fails at the end of a run that has a deadline: 'dict' object has no attribute 'hex'.
    dag.deadline = None
    dag_run = dag.test(run_conf=params)
    instances = dag_run.get_task_instances()
    return {
        "run_id": dag_run.run_id,
        "run_state": str(dag_run.state),
        "tasks": {instance.task_id: str(instance.state) for instance in instances},
    }


def main(argv: list[str] | None = None) -> int:
    """Run, write the outcome; 0 when the run succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dag-id", required=True)
    parser.add_argument("--params", type=json.loads, default={}, help="JSON object, as in the UI's trigger form")
    parser.add_argument("--outcome", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    outcome = run(arguments.dag_id, arguments.params)
    arguments.outcome.write_text(json.dumps(outcome, indent=2))
    return 0 if outcome["run_state"] == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
