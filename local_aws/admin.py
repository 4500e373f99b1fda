"""What tests ask of local_aws itself, below `/_local_aws/`: faults, and harm to clusters and steps. JSON both ways."""

import json
import signal
from typing import Any

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from local_aws.emr.errors import EmrError
from local_aws.emr.harm import CannotHarm, end, kill_step
from local_aws.emr.operations import handlers
from local_aws.emr.service import Emr
from local_aws.faults import BadRule, Faults

_PREFIX = "/_local_aws"
_ROUTES = Map(
    [
        Rule("/_local_aws/faults", methods=["GET"], endpoint="list"),
        Rule("/_local_aws/faults", methods=["POST"], endpoint="add"),
        Rule("/_local_aws/faults", methods=["DELETE"], endpoint="clear"),
        Rule("/_local_aws/faults/<fault_id>", methods=["DELETE"], endpoint="remove"),
        Rule("/_local_aws/clusters/<cluster_id>/lose-instances", methods=["POST"], endpoint="lose-instances"),
        Rule("/_local_aws/clusters/<cluster_id>/steps/<step_id>/kill", methods=["POST"], endpoint="kill"),
    ]
)


def is_for_admin(path: str) -> bool:
    """Whether a request's path is one of these, or would be."""
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def _endpoints() -> str:
    """What can be asked for."""
    return ", ".join(f"{method} {rule.rule}" for rule in _ROUTES.iter_rules() for method in _methods(rule))


def _methods(rule: Rule) -> list[str]:
    # Werkzeug answers HEAD wherever GET is.
    return sorted((rule.methods or set()) - {"HEAD"})


class Admin:
    """Answers for the faults and the EMR of one server."""

    def __init__(self, faults: Faults, emr: Emr) -> None:
        self._faults = faults
        self._emr = emr

    def respond(self, request: Request) -> Response:
        """The answer to one HTTP request; errors are {"message": ...}."""
        try:
            endpoint, arguments = _ROUTES.bind_to_environ(request.environ).match()
            answer, status = self._answer(endpoint, arguments, request), 200
        except NotFound:
            answer, status = {"message": f"there is no {request.path}, but {_endpoints()}"}, 404
        except HTTPException as error:
            answer, status = {"message": f"{request.method} {request.path}: {error.name}"}, error.code or 500
        except BadRule as error:
            answer, status = {"message": str(error)}, 400
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            answer, status = {"message": f"the body is not JSON: {error}"}, 400
        except EmrError as error:
            answer, status = {"message": str(error)}, 404
        except KeyError as error:
            answer, status = {"message": f"there is no fault {error}"}, 404
        except CannotHarm as error:
            answer, status = {"message": str(error)}, 409
        return Response(json.dumps(answer), status=status, content_type="application/json")

    def _answer(self, endpoint: str, arguments: Any, request: Request) -> dict[str, Any]:
        match endpoint:
            case "list":
                return {"faults": self._faults.listed()}
            case "add":
                return {"id": self._faults.add(json.loads(request.get_data()), handlers)}
            case "lose-instances":
                end(self._emr.life(arguments["cluster_id"]), "INSTANCE_FAILURE")
            case "kill":
                number = _parse_signal(json.loads(request.get_data() or b"{}"))
                kill_step(self._emr.life(arguments["cluster_id"]), arguments["step_id"], number)
            case _:
                self._faults.remove(arguments.get("fault_id"))
        return {}


def _parse_signal(wire: Any) -> signal.Signals:
    number = wire.get("signal", signal.SIGKILL) if isinstance(wire, dict) and set(wire) <= {"signal"} else None
    if isinstance(number, int) and number in set(signal.Signals):
        return signal.Signals(number)
    raise BadRule(f'{wire!r} is not {{"signal": NUMBER}} with the number of a signal')
