"""generate.k6.js's scenario for locust, with the same environment variables."""

from __future__ import annotations

import itertools
import json
import os

import gevent
from locust import HttpUser, constant, task
from locust.exception import StopUser

LORAS: list[str] = json.loads(os.environ["LORAS"])
ITERATIONS = int(os.environ.get("ITERATIONS") or 0)
COUNTER = itertools.count()


class Artist(HttpUser):  # type: ignore[misc]  # locust is untyped
    host = os.environ["AO_URL"]
    wait_time = constant(0)

    @task  # type: ignore[untyped-decorator]
    def generate(self) -> None:
        index = next(COUNTER)
        if ITERATIONS and index >= ITERATIONS:
            if index == ITERATIONS:  # end once running requests are done
                gevent.spawn(self.environment.runner.quit)
            raise StopUser
        body: dict[str, object] = {
            "prompt": "a small red star",
            "steps": int(os.environ["STEPS"]),
            "seed": 7,
        }
        if LORAS:
            body["loras"] = {LORAS[index % len(LORAS)]: 0.8}
        headers = {"Authorization": f"Bearer {os.environ['AO_KEY']}"}
        with self.client.post(
            "/generate/sdxl", json=body, headers=headers, catch_response=True
        ) as response:
            if response.status_code != 200 or "image_b64" not in response.text:
                response.failure(f"{response.status_code}: {response.text[:200]}")
