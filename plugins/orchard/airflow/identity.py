"""What distinguishes this Airflow from others."""

from airflow.configuration import conf


def airflow_identity() -> str:
    """Return the URL at which users reach this Airflow, which all of its processes know: `[api] base_url`.

    Empty if it is not configured.
    """
    return (conf.get("api", "base_url", fallback=None) or "").rstrip("/")
