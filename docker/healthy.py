"""`python docker/healthy.py COMPONENT`: exit 0 when Airflow's health page calls the component healthy.

Each of Airflow's services can ask the page, as they share one network. `airflow jobs check` would do as well, but loads
all of Airflow each time.
"""

import json
import sys
import urllib.request

PAGE = "http://127.0.0.1:8080/api/v2/monitor/health"
TIMEOUT_SECONDS = 5


def healthy(component: str, page: str = PAGE) -> bool:
    """Whether the page calls `metadatabase`, `scheduler`, `triggerer` or `dag_processor` healthy.

    Raises:
        OSError: the page cannot be had.
    """
    with urllib.request.urlopen(page, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  # our own page
        status = json.load(answer)[component]["status"]
    return bool(status == "healthy")


if __name__ == "__main__":
    sys.exit(0 if healthy(*sys.argv[1:]) else 1)
