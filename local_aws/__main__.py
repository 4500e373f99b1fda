"""`python -m local_aws --port 5000 --data DIR`: serve until SIGINT or SIGTERM, then end every cluster and leave.

Steps run on the Spark master that the variable LOCAL_EMR_MASTER names: local[*] if it is not set, or for executors in
processes of their own local-cluster[EXECUTORS,CORES,MB], or standalone[EXECUTORS,CORES,MB], a standalone cluster that
starts and ends with this program.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from local_aws.emr.life import Timings
from local_aws.emr.master import DEFAULT_MASTER, checked_master
from local_aws.emr.standalone import StandaloneDidNotStart
from local_aws.server import LocalAws
from local_aws.state import UnusableState

log = logging.getLogger("local_aws")


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m local_aws", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="on 127.0.0.1; 0 takes a free one (default 5000)")
    parser.add_argument("--data", type=Path, required=True, help="folder for the nodes of the clusters")
    for state in ("starting", "bootstrapping", "terminating"):
        help_text = f"how long a cluster stays {state.upper()}, besides what it does there (default 0)"
        parser.add_argument(f"--{state}-seconds", type=float, default=0, help=help_text)
    arguments = parser.parse_args(argv)
    try:
        master = checked_master(os.environ.get("LOCAL_EMR_MASTER", DEFAULT_MASTER))
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("werkzeug", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        timings = Timings(arguments.starting_seconds, arguments.bootstrapping_seconds, arguments.terminating_seconds)
        server = LocalAws(arguments.data, arguments.port, timings, master)
    except OSError as error:
        log.error("cannot listen on 127.0.0.1:%d: %s; choose another --port", arguments.port, error)
        return 1
    try:
        with server:
            log.info("serving on %s, clusters below %s", server.endpoint_url, arguments.data)
            stop.wait()
            log.info("stopping")
    except (StandaloneDidNotStart, UnusableState) as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        log.error("cannot work in %s: %s; give another --data", arguments.data, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
