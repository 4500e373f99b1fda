"""The EMR operations, one function each, in modules named for their subject; `handlers` holds them by operation name.

They may import everything in `local_aws.emr` except `api`, which calls them.
"""

from collections.abc import Callable

from local_aws.emr.model import Wire
from local_aws.emr.service import Emr

Handler = Callable[[Emr, Wire, str], Wire]
handlers: dict[str, Handler] = {}


def operation(name: str) -> Callable[[Handler], Handler]:
    """Register the handler of an operation. It receives the EMR, the request and the region, and returns a response."""

    def register(handler: Handler) -> Handler:
        handlers[name] = handler
        return handler

    return register
