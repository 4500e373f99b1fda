"""Ends the clusters of ours that no live run owns, whatever became of their teardown."""

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchard.cluster import DAG_TAG, NAME_PREFIX, RUN_TAG
from orchard.emr import LIVE, list_clusters, terminate_cluster
from orchard.plan import run_name
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_emr.type_defs import ClusterTypeDef

log = logging.getLogger(__name__)

# The state of a run, from its DAG's id and its own; None if Airflow has no such run; any error if it does not say.
StateOfRun = Callable[[str, str], str | None]

OVER = ("success", "failed")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to become of a cluster of ours, and why; `run_state` is "unknown" or "not asked" where there is none."""

    cluster_id: str
    name: str
    state: str
    dag_id: str
    run_id: str
    run_state: str
    age_hours: float
    reap: bool
    why: str


def run_id_of_tag(value: str) -> str:
    """The run_id in a cluster's tag, which may not hold a tilde.

    >>> run_id_of_tag("manual__2026-11-22T02:00:00+00:00@again")
    'manual__2026-11-22T02:00:00+00:00~again'
    """
    return value.replace("@", "~")


def hash_in_name(name: str, bucket: str) -> str | None:
    """The hash of the run_id in the name of a deployment's cluster; None for the name of another's, or none of ours.

    The run's time is part of what is looked for, as one bucket's name may begin with another's.

    >>> hash_in_name("orchard-fruits-20261122T020000-e20065-images", "fruits")
    'e20065'
    >>> hash_in_name("orchard-fruits-test-20261122T020000-e20065-images", "fruits")
    """
    found = re.match(rf"{NAME_PREFIX}{re.escape(bucket)}-\d{{8}}T\d{{6}}-([0-9a-f]{{6}})-", name)
    return found and found[1]


def our_clusters(emr: "EMRClient", settings: Settings) -> list[tuple[str, str]]:
    """The id and the name of each live cluster that is named like one of this deployment."""
    listed = [(cluster["Id"], cluster["Name"]) for cluster in list_clusters(emr, LIVE)]
    return [(cluster_id, name) for cluster_id, name in listed if hash_in_name(name, settings.bucket)]


def judge(cluster: "ClusterTypeDef", settings: Settings, state_of_run: StateOfRun, now: datetime) -> Verdict | None:
    """What is to become of a cluster that is named like one of ours; None if it lacks our tags.

    Raises:
        Exception: whatever `state_of_run` raises; nothing is known then, and nothing may be done.
    """
    tags = {tag["Key"]: tag["Value"] for tag in cluster.get("Tags", [])}
    if not {DAG_TAG, RUN_TAG} <= tags.keys():
        return None
    dag_id, run_id = tags[DAG_TAG], run_id_of_tag(tags[RUN_TAG])
    age = now - cluster["Status"]["Timeline"]["CreationDateTime"]
    run_state, reap = "not asked", False
    if age > timedelta(hours=settings.max_cluster_hours):
        # Its run may be live, but nothing of ours takes so long.
        reap, why = True, f"it is older than {settings.max_cluster_hours} hours"
    elif not run_name(now, run_id).endswith(f"-{hash_in_name(cluster['Name'], settings.bucket)}"):
        # A deployment may allow run_ids that a tag cannot hold. Asked for what is left of one, Airflow would not know
        # a run that is live.
        why = "its tag does not hold the run_id that it is named for"
    else:
        run_state = state_of_run(dag_id, run_id) or "unknown"
        reap, why = run_state in (*OVER, "unknown"), f"its run is {run_state}"
    return Verdict(
        cluster_id=cluster["Id"],
        name=cluster["Name"],
        state=cluster["Status"]["State"],
        dag_id=dag_id,
        run_id=run_id,
        run_state=run_state,
        age_hours=round(age / timedelta(hours=1), 2),
        reap=reap,
        why=why,
    )


def reap_clusters(
    emr: "EMRClient", settings: Settings, state_of_run: StateOfRun, *, now: datetime, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Ask for the end of each cluster of this deployment whose run is over or unknown, or that is too old.

    Returns:
        Of each live cluster of ours the verdict, and as `outcome` what was done: "reaped", "left alone" or, in a dry
        run, "would be reaped".

    Raises:
        ExceptionGroup: some clusters could not be looked at, judged or ended; the others have been dealt with.
        botocore.exceptions.ClientError: EMR does not list its clusters; nothing has been done.
    """
    reaped = "would be reaped" if dry_run else "reaped"
    report: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    for cluster_id, name in our_clusters(emr, settings):
        try:
            verdict = judge(emr.describe_cluster(ClusterId=cluster_id)["Cluster"], settings, state_of_run, now)
            if verdict is not None and verdict.reap and not dry_run:
                terminate_cluster(emr, cluster_id)
        except Exception as error:
            log.exception("cluster %s %s: failed", cluster_id, name)
            failed[cluster_id] = error
            continue
        if verdict is None:
            log.info("cluster %s %s: left alone: it lacks our tags", cluster_id, name)
            continue
        outcome = reaped if verdict.reap else "left alone"
        report.append({**asdict(verdict), "outcome": outcome})
        age, run = f"{verdict.age_hours:.1f} h old", f"run {verdict.run_id} of {verdict.dag_id}"
        log.info("cluster %s %s, %s, %s: %s: %s", cluster_id, name, age, run, outcome, verdict.why)
    count = sum(verdict["reap"] for verdict in report)
    log.info("janitor: %d clusters of ours, %d %s, %d failed", len(report) + len(failed), count, reaped, len(failed))
    if failed:
        faults = "; ".join(f"{cluster_id}: {error}" for cluster_id, error in failed.items())
        raise ExceptionGroup(f"clusters that could not be judged or ended: {faults}", list(failed.values()))
    return report
