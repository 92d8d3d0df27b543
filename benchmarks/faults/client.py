"""A constant client: known seeds, one after another, each answered once and rightly."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import httpx

AssetSelection = Mapping[str, Any]

SEEDS = tuple(range(4))
DEADLINE_S = 240.0
#: Said to a client that may come again.
_AGAIN = (429, 500, 502, 503, 504)
#: A client of its own for each request would cost more than the request.
_CLIENT = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=None), verify=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, with whose key. With several addresses the next is tried when one fails."""

    urls: Sequence[str]
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True, slots=True)
class Answer:
    """In seconds of the monotonic clock; ``image`` is a digest, or None of a request that
    was lost; ``said`` is all that was said before the picture came, or instead of it."""

    seed: int
    asked_s: float
    answered_s: float
    image: str | None
    attempts: int
    said: str = ""
    replica: str = ""
    #: The assets that were asked for.
    wanted: str = "{}"
    #: Its idempotency key, or what it is charged as where it had none.
    key: str = ""
    charge: str = ""


def body(
    seed: int, wanted: AssetSelection = MappingProxyType({}), steps: int = 4
) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": "a small red star", "steps": steps, "seed": seed}
    return {**asked, "image_encoding": "png", **wanted}


def ask(
    endpoint: Endpoint,
    seed: int,
    wanted: AssetSelection = MappingProxyType({}),
    deadline_s: float = DEADLINE_S,
) -> Answer:
    """One picture, with a key of its own: it may be sent as often as it takes."""
    key = secrets.token_hex(16)
    headers = {**endpoint.headers, "Idempotency-Key": key}
    asked_s = time.monotonic()
    said: list[str] = []
    attempts = 0
    while time.monotonic() < asked_s + deadline_s:
        url = endpoint.urls[attempts % len(endpoint.urls)]
        attempts += 1
        try:
            response = _CLIENT.post(
                f"{url}/generate/sdxl", json=body(seed, wanted), headers=headers
            )
        except httpx.HTTPError as error:
            said.append(type(error).__name__)
            time.sleep(0.1)
            continue
        if response.is_success:
            found = answered(seed, wanted, asked_s, response.json())
            return replace(found, attempts=attempts, said="; ".join(said), key=key, charge="")
        said.append(f"{response.status_code} {response.text[:200]}")
        if response.status_code not in _AGAIN:
            break
        time.sleep(min(10.0, float(response.headers.get("retry-after", 0.5))))
    return Answer(
        seed, asked_s, time.monotonic(), None, attempts, "; ".join(said), "", _names(wanted), key
    )


def answered(
    seed: int, wanted: AssetSelection, asked_s: float, answer: Mapping[str, Any]
) -> Answer:
    """Of a request without a key, whose body was that."""
    image = hashlib.sha256(base64.b64decode(answer["images"][0]["image_b64"])).hexdigest()
    return Answer(
        seed, asked_s, time.monotonic(), image, 1, "", answer["receipt"]["replica"],
        _names(wanted), charge=answer["request_id"],
    )  # fmt: skip


def _names(wanted: AssetSelection) -> str:
    return json.dumps(dict(wanted), sort_keys=True)


class Load:
    """Clients that ask until the block ends: what ``ask`` gives for a client's n-th request, one
    after another without a pause."""

    def __init__(self, ask: Callable[[int], Answer], clients: int = 3) -> None:
        self.answers: list[Answer] = []
        self.errors: list[BaseException] = []
        self._ask = ask
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def _run(self, index: int) -> None:
        try:
            while not self._stop.is_set():
                index += 1
                self.answers.append(self._ask(index))
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def await_more(self, count: int, since_s: float = 0.0, timeout_s: float = 300.0) -> None:
        """Until so many pictures more, asked for after that moment, were answered.

        Raises:
            TimeoutError.
        """
        target = count + self._since(since_s)
        deadline = time.monotonic() + timeout_s
        while self._since(since_s) < target:
            if self.errors:
                raise self.errors[0]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._since(since_s)} of {target} answers")
            time.sleep(0.02)

    def _since(self, since_s: float) -> int:
        return sum(a.image is not None and a.asked_s >= since_s for a in self.answers)


def known(endpoint: Endpoint) -> Callable[[int], Answer]:
    """Requests for the pictures of SEEDS, in turns."""
    return lambda index: ask(endpoint, SEEDS[index % len(SEEDS)])
