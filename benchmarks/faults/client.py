"""A constant client: known seeds, one after another, each answered once and rightly."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.faults.stage import Stage

SEEDS = tuple(range(4))
DEADLINE_S = 240.0
#: Said to a client that may come again.
_AGAIN = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Answer:
    """In seconds of the monotonic clock; ``picture`` is a digest, or None of a request that
    was lost."""

    seed: int
    asked_s: float
    answered_s: float
    picture: str | None
    attempts: int
    said: str = ""


def body(seed: int, lora: str | None = None, steps: int = 4) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": "a small red star", "steps": steps, "seed": seed}
    asked["image_encoding"] = "png"
    if lora is not None:
        asked["loras"] = {lora: 1.0}
    return asked


def ask(stage: Stage, seed: int, lora: str | None = None) -> Answer:
    """One picture, with a key of its own: it may be sent as often as it takes."""
    headers = {"Authorization": f"Bearer {stage.key}", "Idempotency-Key": secrets.token_hex(16)}
    asked_s = time.monotonic()
    said, attempts = "", 0
    while time.monotonic() < asked_s + DEADLINE_S:
        attempts += 1
        try:
            response = httpx.post(
                f"{stage.url}/generate/sdxl", json=body(seed, lora), headers=headers, timeout=120
            )
        except httpx.HTTPError as error:
            said = type(error).__name__
            time.sleep(0.1)
            continue
        if response.is_success:
            data = base64.b64decode(response.json()["images"][0]["image_b64"])
            picture = hashlib.sha256(data).hexdigest()
            return Answer(seed, asked_s, time.monotonic(), picture, attempts, said)
        said = f"{response.status_code} {response.text[:200]}"
        if response.status_code not in _AGAIN:
            break
        time.sleep(min(2.0, float(response.headers.get("retry-after", 0.5))))
    return Answer(seed, asked_s, time.monotonic(), None, attempts, said)


class Load:
    """Clients that ask without a pause until the block ends."""

    def __init__(self, stage: Stage, clients: int = 3) -> None:
        self.answers: list[Answer] = []
        self._stage = stage
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def _run(self, index: int) -> None:
        while not self._stop.is_set():
            index += 1
            self.answers.append(ask(self._stage, SEEDS[index % len(SEEDS)]))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def await_more(self, count: int, since_s: float = 0.0, timeout_s: float = 300.0) -> None:
        """Until so many pictures more, asked for after that moment, were answered."""
        target = count + self._since(since_s)
        deadline = time.monotonic() + timeout_s
        while self._since(since_s) < target and time.monotonic() < deadline:
            time.sleep(0.02)

    def _since(self, since_s: float) -> int:
        return sum(a.picture is not None and a.asked_s >= since_s for a in self.answers)
