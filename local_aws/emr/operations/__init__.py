"""What EMR answers, one function an operation, in modules by noun; `handlers` has them by the operation's name."""

from collections.abc import Callable

from local_aws.emr.model import Wire
from local_aws.emr.service import Emr

Handler = Callable[[Emr, Wire, str], Wire]
handlers: dict[str, Handler] = {}


def operation(name: str) -> Callable[[Handler], Handler]:
    """Register the function that answers an operation; it gets the service, the request and the region."""

    def register(handler: Handler) -> Handler:
        handlers[name] = handler
        return handler

    return register
