"""``serve --in-process``: one process, no Ray."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable

import uvicorn

from serving.api.app import create_app
from serving.api.server import allow_open_files, server_config
from serving.api.throttle import ThrottleMiddleware
from serving.in_process import local_context
from serving.settings import Settings


def serve_in_process(settings: Settings, progress: Callable[[str], None]) -> None:
    """Run the platform until a signal ends it."""

    async def run() -> None:
        progress("importing the base model and warming up, without Ray")
        async with local_context(settings) as context:
            progress(f"serving on {settings.resolved_public_url}")
            allow_open_files()
            # After shutdown uvicorn raises it again; an exception closes the context.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            app = ThrottleMiddleware(create_app(context))
            await uvicorn.Server(server_config(settings, app)).serve()

    asyncio.run(run())
