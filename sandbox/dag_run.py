"""Run a DAG once in this process with Airflow's `dag.test`, and write its outcome to a JSON file.

This is a separate program because Airflow reads its configuration from the environment when it is imported.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.dag_processing.dagbag import DagBag

# The task and the key of each XCom in the outcome.
XCOMS = {"planned": ("plan", None, "summary"), "published": ("publish",), "cost": ("verdict", None, "cost")}

EXAMPLE = """\
example:
  python -m sandbox.dag_run --dag-id fruit_features --params '{"n_components": 50}' --outcome outcome.json
"""


def run(dag_id: str, params: dict[str, Any]) -> dict[str, Any]:
    """Run a DAG to its end, and return its run_id, its state, the state of each task, and the values of XCOMS.

    Raises:
        SystemExit: the DAG cannot be loaded.
    """
    bag = DagBag(conf.get_mandatory_value("core", "dags_folder"))
    dag = bag.get_dag(dag_id)
    if dag is None:
        raise SystemExit(f"DAG {dag_id} cannot be loaded: {bag.import_errors}")
    # In Airflow 3.3.2, dag.test fails at the end of a run that has a deadline: 'dict' object has no attribute 'hex'.
    dag.deadline = None
    dag_run = dag.test(run_conf=params)
    instances = {instance.task_id: instance for instance in dag_run.get_task_instances()}
    any_instance = next(iter(instances.values()))
    return {
        "run_id": dag_run.run_id,
        "run_state": str(dag_run.state),
        "tasks": {task_id: str(instance.state) for task_id, instance in instances.items()},
        **{name: any_instance.xcom_pull(*source) for name, source in XCOMS.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the DAG, write the outcome, and return 0 if the run succeeds."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.dag_run",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dag-id", required=True, help="the DAG to run")
    parser.add_argument(
        "--params", type=json.loads, default={}, help="JSON object with the DAG's params, as in Airflow's trigger form"
    )
    parser.add_argument("--outcome", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    outcome = run(arguments.dag_id, arguments.params)
    arguments.outcome.write_text(json.dumps(outcome, indent=2))
    return 0 if outcome["run_state"] == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
