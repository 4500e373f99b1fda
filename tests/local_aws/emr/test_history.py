"""Spark's history server, and the event logs that it shows."""

from pathlib import Path

import httpx

from tests.local_aws.user import QUICK_JVM, User, command, wait_until

PROGRAM = """
import sys, time
from pathlib import Path
from pyspark.sql import SparkSession

name, started, end = sys.argv[1:]
spark = SparkSession.builder.appName(name).getOrCreate()
spark.range(10).count()
Path(started).touch()
while not Path(end).exists():
    time.sleep(0.02)
"""


def app_ui(user: User, cluster_id: str) -> str:
    """Wait until a cluster's UI shows its applications, and return its URL."""
    arn = user.cluster(cluster_id)["ClusterArn"]
    app_ui_id = user.emr.create_persistent_app_ui(TargetResourceArn=arn)["PersistentAppUIId"]
    wait = user.emr.get_persistent_app_ui_presigned_url
    return wait_until(lambda: wait(PersistentAppUIId=app_ui_id).get("PresignedURL"), "the UI", seconds=60)


def test_the_history_server_shows_the_applications_of_a_cluster_while_they_run_and_afterwards(
    user: User, tmp_path: Path
) -> None:
    program, started, end = user.put("history.py", PROGRAM), tmp_path / "started", tmp_path / "end"
    submit = command("spark-submit", *QUICK_JVM, program, "<b>apples</b>", str(started), str(end))
    cluster_id = user.start(submit, keep_alive=True)
    wait_until(started.exists, "the job", seconds=120)
    url, _, query = app_ui(user, cluster_id).partition("?")
    assert query == "showIncomplete=true"
    (running,) = httpx.get(f"{url}api/v1/applications").json()
    assert (running["name"], running["attempts"][0]["completed"]) == ("<b>apples</b>", False)
    end.touch()
    user.wait_for(cluster_id, "WAITING")
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")

    def ended() -> bool:
        # Spark renames the event log of an application that ends. For a moment, the server lists none.
        applications = httpx.get(f"{url}api/v1/applications").json()
        return [(each["id"], each["attempts"][0]["completed"]) for each in applications] == [(running["id"], True)]

    wait_until(ended, "the end of the application")
    assert app_ui(user, cluster_id) == url
    page = httpx.get(f"{url}history/{running['id']}/jobs/", follow_redirects=True)
    assert page.status_code == 200
    assert "&lt;b&gt;apples&lt;/b&gt;" in page.text
