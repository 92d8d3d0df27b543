"""A minimal Ray Serve service, the reference of ``benchmarks overhead``: gateway, handle,
replica."""

from __future__ import annotations

import os
import signal

import ray
from fastapi import FastAPI, Request, Response
from ray import serve

NAME = "echo"


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class Echo:
    async def answer(self, body: bytes, size_bytes: int) -> bytes:
        return body + b" " * (size_bytes - len(body))


def deploy() -> None:
    """Deploy the replica on the joined Ray cluster."""
    application = Echo.options(ray_actor_options={"num_cpus": 0}).bind()  # type: ignore[attr-defined]
    serve.run(application, name=NAME, route_prefix=None)


def app() -> FastAPI:
    """Build a gateway, configured by ECHO_RAY_ADDRESS and ECHO_BYTES."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=os.environ["ECHO_RAY_ADDRESS"],
        namespace="echo",
        log_to_driver=False,
        configure_logging=False,
    )
    signal.signal(signal.SIGTERM, on_sigterm)
    size_bytes = int(os.environ["ECHO_BYTES"])
    application = FastAPI()
    handle = serve.get_app_handle(NAME)

    @application.post("/generate/sdxl")
    async def generate(request: Request) -> Response:
        data = await handle.answer.remote(await request.body(), size_bytes)
        return Response(data, media_type="application/json")

    return application
