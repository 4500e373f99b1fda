"""Serve a local AWS until SIGINT or SIGTERM: `python -m local_aws --port 5000 --data DIR`."""

import argparse
import logging
import math
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from local_aws.emr.life import LIKE_EMR, Timings
from local_aws.emr.master import DEFAULT_MASTER, checked_master
from local_aws.emr.node import s3a_jars
from local_aws.emr.standalone import StandaloneDidNotStart
from local_aws.plain_folder import UnusableFolder
from local_aws.server import LocalAws
from local_aws.state import UnusableState

log = logging.getLogger("local_aws")

DESCRIPTION = """\
Serve a local AWS until SIGINT or SIGTERM, then kill all processes of its clusters.

Steps run on the Spark master in the environment variable LOCAL_EMR_MASTER:
  local[*], local[N]                  in the driver, on all cores or N (default: local[*])
  local-cluster[EXECUTORS,CORES,MB]   in executor processes that the driver starts
  standalone[EXECUTORS,CORES,MB]      on a standalone cluster that starts and stops with this program

If the environment variable LOCAL_AWS_CALLS is the name of a file, each call is recorded in it: principal, IAM action,
resources and condition keys.
"""
EXAMPLE = """\
example:
  LOCAL_EMR_MASTER='local[2]' python -m local_aws --port 5000 --data build/aws
"""


def seconds(text: str) -> float:
    """Return the seconds in the value of an option.

    Raises:
        argparse.ArgumentTypeError: it is no number, or one for which no thread can wait.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text} is no time: use a number of seconds, 0 or more")
    return value


def timings_of(arguments: argparse.Namespace) -> Timings:
    """Return the timings of the given options. Those that are not given are None.

    >>> timings_of(argparse.Namespace(like_emr=True, starting_seconds=1.0, log_delay_seconds=None)).starting_seconds
    1.0
    """
    given = {key: value for key, value in vars(arguments).items() if key.endswith("_seconds") and value is not None}
    return replace(LIKE_EMR if arguments.like_emr else Timings(), **given)


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal arrives; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local_aws",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the sandbox looks for options by their names
    )
    parser.add_argument(
        "--port", type=int, default=5000, help="port on 127.0.0.1; 0 selects a free one (default: 5000)"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder for cluster nodes and state")
    parser.add_argument(
        "--like-emr",
        action="store_true",
        help="take as long as EMR for clusters and logs, and throttle requests as EMR does",
    )
    for state in ("starting", "bootstrapping", "terminating"):
        help_text = f"extra seconds that a cluster stays {state.upper()} (default: 0)"
        parser.add_argument(f"--{state}-seconds", type=seconds, metavar="SECONDS", help=help_text)
    parser.add_argument(
        "--log-delay-seconds",
        type=seconds,
        metavar="SECONDS",
        help=f"seconds from the end of a step to the upload of its logs (default: {Timings.log_delay_seconds})",
    )
    parser.add_argument(
        "--spot-timeout-seconds",
        type=seconds,
        metavar="SECONDS",
        help=f"seconds until a fleet acts because EC2 lacks Spot capacity (default: {Timings.spot_timeout_seconds})",
    )
    arguments = parser.parse_args(argv)
    try:
        master = checked_master(os.environ.get("LOCAL_EMR_MASTER", DEFAULT_MASTER))
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for verbose_logger in ("werkzeug", "botocore"):
        logging.getLogger(verbose_logger).setLevel(logging.WARNING)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        s3a_jars()  # otherwise the first cluster would find out that they are missing
        timings = timings_of(arguments)
        calls = os.environ.get("LOCAL_AWS_CALLS")
        server = LocalAws(arguments.data, arguments.port, timings, master, Path(calls) if calls else None)
    except (ModuleNotFoundError, UnusableFolder) as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        log.error("cannot listen on 127.0.0.1:%d: %s; use another --port", arguments.port, error)
        return 1
    try:
        with server:
            log.info("serving on %s, data in %s", server.endpoint_url, arguments.data)
            stop.wait()
            log.info("stopping")
    except (StandaloneDidNotStart, UnusableState) as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        log.error("cannot use the folder %s: %s; use another --data", arguments.data, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
