"""The load: clients that retry known requests until answered."""

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
from typing import TypeAlias

import httpx2

from benchmarks.document import Document

RequestFields: TypeAlias = Mapping[str, object]

SEEDS = tuple(range(4))
DEADLINE_S = 240.0
_RETRIED = (429, 500, 502, 503, 504)
#: Shared: a client costs more than a request.
_CLIENT = httpx2.Client(timeout=120, limits=httpx2.Limits(max_connections=None), verify=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The platform's addresses, used in turn, and an API key."""

    urls: Sequence[str]
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request, with times in seconds of the monotonic clock.

    ``image`` is the image's SHA-256, None if lost; ``said`` lists all attempts' errors.
    """

    seed: int
    asked_s: float
    answered_s: float
    image: str | None
    attempts: int
    said: str = ""
    replica: str = ""
    #: Requested assets as JSON.
    selection: str = "{}"
    #: Idempotency key, or "".
    key: str = ""
    #: The ledger's reference of a request without a key.
    charge: str = ""


def body(seed: int, selection: RequestFields = MappingProxyType({}), steps: int = 4) -> Document:
    base: Document = {"prompt": "a small red star", "steps": steps, "seed": seed}
    return {**base, "image_encoding": "png", **selection}


def ask(
    endpoint: Endpoint,
    seed: int,
    selection: RequestFields = MappingProxyType({}),
    deadline_s: float = DEADLINE_S,
) -> Answer:
    """Request one image with its own idempotency key; retry until ``deadline_s``."""
    key = secrets.token_hex(16)
    headers = {**endpoint.headers, "Idempotency-Key": key}
    asked_s = time.monotonic()
    errors: list[str] = []
    attempts = 0
    while time.monotonic() < asked_s + deadline_s:
        url = endpoint.urls[attempts % len(endpoint.urls)]
        attempts += 1
        try:
            response = _CLIENT.post(
                f"{url}/generate/sdxl", json=body(seed, selection), headers=headers
            )
        except httpx2.HTTPError as error:
            errors.append(type(error).__name__)
            time.sleep(0.1)
            continue
        if response.is_success:
            answer = answered(seed, selection, asked_s, response.json())
            return replace(answer, attempts=attempts, said="; ".join(errors), key=key, charge="")
        errors.append(f"{response.status_code} {response.text[:200]}")
        if response.status_code not in _RETRIED:
            break
        time.sleep(min(10.0, float(response.headers.get("retry-after", 0.5))))
    return Answer(
        seed,
        asked_s,
        time.monotonic(),
        None,
        attempts,
        "; ".join(errors),
        "",
        _names(selection),
        key,
    )


def answered(seed: int, selection: RequestFields, asked_s: float, answer: Document) -> Answer:
    """Build an Answer without an idempotency key."""
    image = hashlib.sha256(base64.b64decode(answer["images"][0]["image_b64"])).hexdigest()
    return Answer(
        seed, asked_s, time.monotonic(), image, 1, "", answer["receipt"]["replica"],
        _names(selection), charge=answer["request_id"],
    )  # fmt: skip


def _names(selection: RequestFields) -> str:
    return json.dumps(dict(selection), sort_keys=True)


class Load:
    """Clients that call ``ask`` with rising numbers, without a pause."""

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
        """Wait for ``count`` more images of requests sent after ``since_s``.

        Raises:
            TimeoutError: after ``timeout_s``.
        """
        target = count + self._since(since_s)
        deadline = time.monotonic() + timeout_s
        while self._since(since_s) < target:
            if self.errors:
                raise self.errors[0]
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self._since(since_s)} of {target} answers in {timeout_s:.0f} s"
                )
            time.sleep(0.02)

    def _since(self, since_s: float) -> int:
        return sum(a.image is not None and a.asked_s >= since_s for a in self.answers)


def known(endpoint: Endpoint) -> Callable[[int], Answer]:
    """Return a function that requests the images of SEEDS in turn."""
    return lambda index: ask(endpoint, SEEDS[index % len(SEEDS)])
