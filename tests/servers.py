import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer

THREAD = "test server"
POLL_SECONDS = 0.05  # how long closing it takes at most


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Let a server of a test serve while the context is open, and close it, also if the test fails.

    A server that is closed while its thread serves it makes the thread busy until the end of the process.
    """
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), name=THREAD, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def threads() -> list[threading.Thread]:
    """Return the threads of the servers that are open."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]
