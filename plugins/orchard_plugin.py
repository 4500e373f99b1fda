"""What Airflow must know of Orchard besides its DAGs: the reports, and the reference of the runs' deadline."""

from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin

from orchard.airflow.deadline import RunAfterDeadline
from orchard.airflow.identity import airflow_identity
from orchard.report.lazy import report

PREFIX = "/orchard"
# Airflow's pages do not add the path of `[api] base_url` to this.
VIEWS = f"{urlsplit(airflow_identity()).path}{PREFIX}/dags/{{DAG_ID}}"


class OrchardPlugin(AirflowPlugin):
    """Registers Orchard's pages, and its classes that Airflow stores by name in its database."""

    name = "orchard"
    # The types of these are Airflow's.
    deadline_references = [RunAfterDeadline]  # noqa: RUF012
    fastapi_apps = [{"app": report, "url_prefix": PREFIX, "name": "Orchard's report"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Report",
            "href": f"{VIEWS}/runs/{{RUN_ID}}/",
            "destination": "dag_run",
            "url_route": "orchard-report",
        },
        {
            "name": "Over time",
            "href": f"{VIEWS}/",
            "destination": "dag",
            "url_route": "orchard-over-time",
        },
    ]
