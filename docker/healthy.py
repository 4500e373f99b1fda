"""Exit with 0 if Airflow's health page reports a component as healthy. The health check of docker-compose.yaml.

All of Airflow's services share one network, so each can read the page. `airflow jobs check` would import all of Airflow
each time.
"""

import argparse
import json
import sys
import urllib.request

PAGE = "http://127.0.0.1:8080/api/v2/monitor/health"
TIMEOUT_SECONDS = 5
COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")
EXAMPLE = """\
example:
  python docker/healthy.py scheduler
"""


def healthy(component: str, page: str = PAGE) -> bool:
    """Return whether the page reports a component as healthy.

    Raises:
        OSError: the page is unavailable.
    """
    with urllib.request.urlopen(page, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310  # a constant URL
        status = json.load(response)[component]["status"]
    return bool(status == "healthy")


def main(argv: list[str] | None = None) -> int:
    """Check a component, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python docker/healthy.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("component", choices=COMPONENTS, help="component of Airflow")
    return 0 if healthy(parser.parse_args(argv).component) else 1


if __name__ == "__main__":
    sys.exit(main())
