"""The admin API below `/_local_aws/`: manage fault rules, and inject faults into clusters and steps. It uses JSON."""

import json
import signal
import threading
from typing import Any

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from local_aws.emr.errors import EmrError
from local_aws.emr.operations import handlers
from local_aws.emr.service import Emr
from local_aws.faults.clusters import CannotInject, end_cluster, interrupt_spot, kill_step
from local_aws.faults.rules import Faults, InvalidRule

_PREFIX = "/_local_aws"
_ROUTES = Map(
    [
        Rule("/_local_aws/faults", methods=["GET"], endpoint="list"),
        Rule("/_local_aws/faults", methods=["POST"], endpoint="add"),
        Rule("/_local_aws/faults", methods=["DELETE"], endpoint="clear"),
        Rule("/_local_aws/faults/<fault_id>", methods=["DELETE"], endpoint="remove"),
        Rule("/_local_aws/clusters/<cluster_id>/lose-instances", methods=["POST"], endpoint="lose-instances"),
        Rule("/_local_aws/clusters/<cluster_id>/interrupt-spot", methods=["POST"], endpoint="interrupt-spot"),
        Rule("/_local_aws/clusters/<cluster_id>/steps/<step_id>/kill", methods=["POST"], endpoint="kill"),
    ]
)


def is_admin_path(path: str) -> bool:
    """Return whether a path belongs to the admin API."""
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def _endpoints() -> str:
    """Return all methods and paths of the admin API."""
    return ", ".join(f"{method} {rule.rule}" for rule in _ROUTES.iter_rules() for method in _methods(rule))


def _methods(rule: Rule) -> list[str]:
    # Werkzeug adds HEAD wherever there is GET.
    return sorted((rule.methods or set()) - {"HEAD"})


class Admin:
    """Responds to admin requests for the faults and the EMR of one server."""

    def __init__(self, faults: Faults, emr: Emr) -> None:
        self._faults = faults
        self._emr = emr

    def respond(self, request: Request) -> Response:
        """Return the response to an HTTP request; errors have the body {"message": ...}."""
        try:
            endpoint, arguments = _ROUTES.bind_to_environ(request.environ).match()
            body, status = self._call(endpoint, arguments, request), 200
        except NotFound:
            body, status = {"message": f"{request.path} does not exist; use one of {_endpoints()}"}, 404
        except HTTPException as error:
            body, status = {"message": f"{request.method} {request.path}: {error.name}"}, error.code or 500
        except InvalidRule as error:
            body, status = {"message": str(error)}, 400
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            body, status = {"message": f"the body is not JSON: {error}"}, 400
        except EmrError as error:
            body, status = {"message": str(error)}, 404
        except KeyError as error:
            body, status = {"message": f"fault {error} does not exist"}, 404
        except CannotInject as error:
            body, status = {"message": str(error)}, 409
        return Response(json.dumps(body), status=status, content_type="application/json")

    def _call(self, endpoint: str, arguments: Any, request: Request) -> dict[str, Any]:
        match endpoint:
            case "list":
                return {"faults": self._faults.describe()}
            case "add":
                return {"id": self._faults.add(json.loads(request.get_data()), handlers)}
            case "lose-instances":
                end_cluster(self._emr.control(arguments["cluster_id"]), "INSTANCE_FAILURE")
            case "interrupt-spot":
                cluster_id = arguments["cluster_id"]
                seconds = _parse_replace_seconds(json.loads(request.get_data() or b"{}"))
                taken, killed = interrupt_spot(self._emr.control(cluster_id), self._emr.home(cluster_id), seconds)
                return {"instances": taken, "executors": killed}
            case "kill":
                number = _parse_signal(json.loads(request.get_data() or b"{}"))
                kill_step(self._emr.control(arguments["cluster_id"]), arguments["step_id"], number)
            case _:
                self._faults.remove(arguments.get("fault_id"))
        return {}


def _parse_replace_seconds(document: Any) -> float:
    valid = isinstance(document, dict) and set(document) <= {"replace_seconds"}
    seconds = document.get("replace_seconds", 0) if valid else None
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= threading.TIMEOUT_MAX:
        return seconds
    raise InvalidRule(f'{document!r} is invalid; use {{"replace_seconds": NUMBER}} with a number of seconds')


def _parse_signal(document: Any) -> signal.Signals:
    valid = isinstance(document, dict) and set(document) <= {"signal"}
    number = document.get("signal", signal.SIGKILL) if valid else None
    if isinstance(number, int) and number in set(signal.Signals):
        return signal.Signals(number)
    raise InvalidRule(f'{document!r} is invalid; use {{"signal": NUMBER}} with the number of a signal')
