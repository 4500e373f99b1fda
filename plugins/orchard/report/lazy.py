"""The report's application, loaded with its first request: every process of Airflow loads Orchard's plugin."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


async def report(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer a request of Airflow's API server, as an ASGI application."""
    module = await asyncio.to_thread(importlib.import_module, "orchard.report.app")
    await module.app(scope, receive, send)
