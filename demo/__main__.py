"""Run the whole pipeline once on this machine, show its progress, and stop everything at the end.

The logs, the run's files and summary.json remain in the folder of the run.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import watch
from demo.local_run import DAG_ID, argument_parser, deployment, download_run, run_once, run_program, upload
from sandbox.folders import ROOT, make_empty

# The report of a run, in its folder.
REPORT = "report.html"
# The keys of the summary that `publish` writes, which the summary of the demo repeats.
RUN_KEYS = (
    "images_listed",
    "images_ingested",
    "images_rejected",
    "reject_reasons",
    "ignored",
    "features_rows",
    "embeddings_rows",
    "n_components",
    "explained_variance",
    "label_accuracy",
    "label_sample",
    "warnings",
    "step_seconds",
    "step_images_per_second",
    "model",
    "run_uri",
    "database",
    "tables",
)
EXAMPLE = """\
example:
  python -m demo --data ~/fruits --params '{"n_components": 50}'
"""


def run_demo(
    folder: Path, build_dir: Path, data: Path | None, params: Mapping[str, Any], print_line: watch.PrintLine
) -> dict[str, Any]:
    """Run the pipeline, and return the summary of the run, whether it succeeds or fails.

    Args:
        folder: the folder for logs, the nodes of the clusters and Airflow's home. It is emptied first.
        build_dir: the folder of the release's wheels and model.
        data: the folder of the images, or None to render some.
        params: the params of the DAG.
        print_line: prints a line about the progress.

    Raises:
        FileNotFoundError: there are no images in `data`, or the release has not been built.
        sandbox.aws.BadFileName: the name of a file in `data` is not UTF-8.
        FileExistsError: `folder` contains the images, or files that are not from an earlier run.
        sandbox.folders.UnusableFolder: Airflow cannot use `folder`.
        sandbox.processes.DidNotStart: the local AWS or Airflow does not start.
    """
    make_empty(folder, data)
    with deployment(folder, build_dir, print_line) as deployed:
        data = upload(deployed, data)
        print_line(f"running the DAG {DAG_ID}")
        run = run_once(deployed, params)
        published = run.published or {}
        if published:
            download_run(deployed.s3, published["run_uri"], folder / "run")
            print_line(f"copied the run's files to {folder / 'run'}")
            if (folder / "run" / REPORT).exists():
                shutil.copy(folder / "run" / REPORT, folder / REPORT)
    return {
        "run_state": run.state,
        **{key: published.get(key) for key in RUN_KEYS},
        "estimated_usd": (run.planned or {}).get("estimate", {}).get("usd"),
        "cost_usd": run.cost["usd"] if run.cost else None,
        "clusters_created": len(run.clusters),
        "clusters_alive": run.clusters_alive,
        "clusters": {cluster["Id"]: cluster["Status"]["State"] for cluster in run.clusters},
        "failed_steps": {
            step["Name"]: step["Status"].get("FailureDetails", {}).get("Message", "")
            for cluster in run.clusters
            for step in cluster["Steps"]
            if step["Status"]["State"] == "FAILED"
        },
        "tasks": run.tasks,
        "seconds": run.task_seconds,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as a short table."""
    rows = [("run", summary["run_state"])]
    if summary["images_listed"] is not None:
        rows += [
            ("images", f"{summary['images_ingested']} of {summary['images_listed']}"),
            ("rejects", _with_counts(summary["images_rejected"], summary.get("reject_reasons"))),
            *_ignored_rows(summary.get("ignored") or {}, summary["images_listed"]),
            *(
                (
                    name,
                    f"{seconds:.1f} s, {summary['step_images_per_second'][name]:.0f} images/s, including Spark's start",
                )
                for name, seconds in summary["step_seconds"].items()
            ),
            ("n_components", f"{summary['n_components']}, {summary['explained_variance']:.1%} of the variance kept"),
            *_quality_rows(summary),
            *(
                (f"{summary['database']}.{name}", f"{table['rows']} rows, snapshot {table['snapshot_id']}")
                for name, table in summary["tables"].items()
            ),
        ]
    if summary["cost_usd"] is not None:
        estimated = f", estimated {summary['estimated_usd']:.4f}" if summary["estimated_usd"] is not None else ""
        rows.append(("cost", f"{summary['cost_usd']:.4f} USD at the prices of eu-west-1{estimated}"))
    rows += [("cluster", f"{cluster} {state}") for cluster, state in summary["clusters"].items()]
    rows += [("task failed", name) for name, state in summary["tasks"].items() if state == "failed"]
    rows += [
        (f"step {name} failed", (message.splitlines() or ["see the log of the step"])[-1])
        for name, message in summary["failed_steps"].items()
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _with_counts(total: int, counts: Mapping[str, int] | None) -> str:
    """Format a total and what it consists of, the most common first."""
    ordered = sorted((counts or {}).items(), key=lambda item: (-item[1], item[0]))
    return f"{total}: {', '.join(f'{count} {name}' for name, count in ordered)}" if ordered else str(total)


def _quality_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row with the label accuracy, if it is known, and a row per warning."""
    rows = [("warning", warning) for warning in summary["warnings"] or []]
    if summary["label_accuracy"] is None:
        return rows
    share = f"{summary['label_accuracy']:.1%} of {summary['label_sample']} images"
    return [("label accuracy", f"{share}, by the nearest neighbour"), *rows]


def _ignored_rows(ignored: Mapping[str, int], images: int) -> list[tuple[str, str]]:
    """Return a row with the number of ignored objects per ending, if there are any."""
    total = sum(ignored.values())
    warning = ", more than the images" if total > images else ""
    return [("ignored", _with_counts(total, ignored) + warning)] if total else []


def main(argv: list[str] | None = None) -> int:
    """Run the demo, and return 0 if the run succeeds and no cluster is active at the end."""
    parser = argument_parser("python -m demo", __doc__, EXAMPLE, ROOT / "build/demo")
    arguments = parser.parse_args(argv)

    def run(print_line: watch.PrintLine) -> int:
        summary = run_demo(arguments.folder, arguments.build_dir, arguments.data, arguments.params, print_line)
        target = arguments.folder / "summary.json"
        target.write_text(json.dumps(summary, indent=2))
        print(table(summary))
        print(f"  summary written to {target}, logs in the same folder")
        if (arguments.folder / REPORT).exists():
            print(f"  report written to {arguments.folder / REPORT}: open it in a browser")
        return 0 if summary["run_state"] == "success" and summary["clusters_alive"] == 0 else 1

    return run_program(run)


if __name__ == "__main__":
    sys.exit(main())
