"""What Airflow must know of Orchard besides its DAGs: the reference of the runs' deadline."""

from airflow.plugins_manager import AirflowPlugin

from orchard.airflow.deadline import RunAfterDeadline


class OrchardPlugin(AirflowPlugin):
    """Registers Orchard's classes that Airflow stores by name in its database."""

    name = "orchard"
    deadline_references = [RunAfterDeadline]  # noqa: RUF012  # Airflow's type is a list
