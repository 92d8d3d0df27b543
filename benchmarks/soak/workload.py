"""Who asks: random assets, the popular ones more often, at a pace of their own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import httpx

from benchmarks.faults.client import Answer, AssetSelection, Load, ask
from benchmarks.faults.harness import Harness

LORAS = 24
#: Requests without any asset, with a LoRA of the tenant, with something of the public library.
_SHARES = (0.25, 0.6, 0.15)
_SEEDS = (0, 1)
_AT_ONCE = 256
_CAPACITY_S = 30.0


class Workload:
    """Draws requests from the same distribution, whoever sends them."""

    def __init__(self, harness: Harness, seed: int) -> None:
        self._stage = harness
        self._random = random.Random(seed)
        self._loras = [harness.new_lora(f"soak-{index}") for index in range(LORAS)]
        self._popularity = [1 / (1 + rank) for rank in range(LORAS)]
        self._public = _public(harness)

    def wish(self) -> tuple[int, AssetSelection]:
        """A seed, and what is wanted with it."""
        seed = self._random.choice(_SEEDS)
        kind = self._random.choices(("none", "lora", "public"), _SHARES)[0]
        if kind == "none":
            return seed, {}
        if kind == "lora":
            return seed, {"loras": {self._random.choices(self._loras, self._popularity)[0]: 1.0}}
        return seed, self._random.choice(self._public)

    def capacity_per_s(self, clients: int) -> float:
        """Pictures a second when ``clients`` ask without a pause."""

        def one(_: int) -> Answer:
            return ask(self._stage.endpoint, *self.wish())

        began = time.monotonic()
        with Load(one, clients) as load:
            time.sleep(_CAPACITY_S)
        return len(load.answers) / (time.monotonic() - began)

    def ask_for(
        self, seconds: float, rate_per_s: float, say: Callable[[str], None]
    ) -> list[Answer]:
        """Arrivals of a Poisson process; all are waited for. A request's time counts from its
        arrival, even when it must wait here for a thread."""
        began = due = time.monotonic()
        asked: list[Future[Answer]] = []
        minutes = count(1)
        minute = next(minutes)
        with ThreadPoolExecutor(_AT_ONCE) as workload:
            while due < began + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                asked.append(workload.submit(self._arrived, due, *self.wish()))
                due += self._random.expovariate(rate_per_s)
                if due >= began + 60 * minute:
                    done = sum(one.done() for one in asked)
                    say(f"{minute} min: {len(asked)} asked, {len(asked) - done} open")
                    minute = next(minutes)
        return [one.result() for one in asked]

    def _arrived(self, at_s: float, seed: int, wanted: AssetSelection) -> Answer:
        return replace(ask(self._stage.endpoint, seed, wanted), asked_s=at_s)


def _public(harness: Harness) -> Sequence[AssetSelection]:
    """One request for each asset of the public library."""
    answer = httpx.get(
        f"{harness.url}/v1/assets", params={"is_public": True}, headers=harness.endpoint.headers
    )
    wishes: list[dict[str, Any]] = []
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
