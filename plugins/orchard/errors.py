"""The error that stops Airflow's retries."""


class PermanentError(Exception):
    """Base class of errors that a retry cannot fix. The message describes what to change."""
