"""The least that a service on Ray Serve can do: a gateway that takes a request, a handle, and a
replica that answers with as many bytes as it is told. ``benchmarks overhead`` compares with it."""

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
    """On the Ray that this process has joined."""
    application = Echo.options(ray_actor_options={"num_cpus": 0}).bind()  # type: ignore[attr-defined]
    serve.run(application, name=NAME, route_prefix=None)


def app() -> FastAPI:
    """Called once in each gateway; where Ray is comes through the environment."""
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
