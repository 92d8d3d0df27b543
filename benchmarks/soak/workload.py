"""The soak's requests: random assets by popularity, at a fixed rate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import httpx2

from benchmarks.document import Document
from benchmarks.faults.client import Answer, Load, RequestFields, ask
from benchmarks.faults.harness import Harness

LORAS = 24
#: Without an asset, with the tenant's LoRA, with a public asset.
_SHARES = (0.25, 0.6, 0.15)
_SEEDS = (0, 1)
_AT_ONCE = 256
_CAPACITY_S = 30.0


class Workload:
    """Random requests from one distribution."""

    def __init__(self, harness: Harness, seed: int) -> None:
        self._harness = harness
        self._random = random.Random(seed)
        self._loras = [harness.new_lora(f"soak-{index}") for index in range(LORAS)]
        self._popularity = [1 / (1 + rank) for rank in range(LORAS)]
        self._public = _public(harness)

    def wish(self) -> tuple[int, RequestFields]:
        """Return a seed and assets."""
        seed = self._random.choice(_SEEDS)
        kind = self._random.choices(("none", "lora", "public"), _SHARES)[0]
        if kind == "none":
            return seed, {}
        if kind == "lora":
            return seed, {"loras": {self._random.choices(self._loras, self._popularity)[0]: 1.0}}
        return seed, self._random.choice(self._public)

    def capacity_per_s(self, clients: int) -> float:
        """Return images per second with ``clients`` that never pause."""

        def ask_random(_: int) -> Answer:
            return ask(self._harness.endpoint, *self.wish())

        began = time.monotonic()
        with Load(ask_random, clients) as load:
            time.sleep(_CAPACITY_S)
        return len(load.answers) / (time.monotonic() - began)

    def ask_for(
        self, seconds: float, rate_per_s: float, say: Callable[[str], None]
    ) -> list[Answer]:
        """Send a Poisson process for ``seconds``; latency includes waiting for a thread."""
        began = due = time.monotonic()
        requests: list[Future[Answer]] = []
        minutes = count(1)
        minute = next(minutes)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while due < began + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                requests.append(pool.submit(self._ask_at, due, *self.wish()))
                due += self._random.expovariate(rate_per_s)
                if due >= began + 60 * minute:
                    open_count = sum(not request.done() for request in requests)
                    say(f"{minute} min: {len(requests)} requests, {open_count} open")
                    minute = next(minutes)
        return [request.result() for request in requests]

    def _ask_at(self, at_s: float, seed: int, selection: RequestFields) -> Answer:
        return replace(ask(self._harness.endpoint, seed, selection), asked_s=at_s)


def _public(harness: Harness) -> Sequence[RequestFields]:
    answer = httpx2.get(
        f"{harness.url}/v1/assets", params={"is_public": True}, headers=harness.endpoint.headers
    )
    wishes: list[Document] = []
    for asset in answer.raise_for_status().json()["data"]:
        name, kind = asset["id"], asset["asset_type"]
        if kind == "lora":
            wishes.append({"loras": {name: 1.0}})
        elif kind == "textual_inversion":
            word = asset["name"]
            wishes.append({"textual_inversions": {name: word}, "prompt": f"a red star, {word}"})
        else:
            wishes.append({kind: name})
    return wishes
