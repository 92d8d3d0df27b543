"""Looking at the books: what must hold of a platform at rest, whatever has happened to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

from benchmarks.faults.client import SEEDS, Answer, ask
from benchmarks.faults.stage import Stage

_QUIET_S = 120.0
_ROUNDS = 20


class Books:
    """Of one stage, opened before anything happens to it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        #: The picture of each seed with the assets that were wanted, as first drawn.
        self._golden: dict[tuple[int, str], str] = {}
        self._charged = 0
        for seed in SEEDS:
            self._expect(ask(stage.door, seed))
        everywhere = self._everywhere()
        self._charged = self._ledger()
        if self._charged != len(SEEDS) + len(everywhere):
            raise SystemExit(f"{self._charged} pictures were charged before anything was harmed")
        self._weights = {*stage.weights().values()}
        if len(self._weights) != 1:
            raise SystemExit("replicas that have drawn the same recipe have other weights")

    def _expect(self, answer: Answer) -> bool:
        """Whether it is the picture that its request has always had; the first says which."""
        if answer.picture is None:
            return True  # lost, which is counted elsewhere
        known = self._golden.setdefault((answer.seed, answer.wanted), answer.picture)
        return answer.picture == known

    def forgive(self) -> None:
        """What was drawn since the last look is not counted."""
        self.await_quiet()
        self._charged = self._ledger()

    def await_quiet(self) -> float:
        """When every replica was up and idle and nothing waited; at the latest after a while."""
        deadline = time.monotonic() + _QUIET_S
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError, KeyError, ValueError):
                status = self.stage.status()
                idle = not status["waiting"] and not any(r["running"] for r in status["replicas"])
                if idle and len(self.stage.up()) >= self.stage.replicas:
                    break
            time.sleep(0.2)
        return time.monotonic()

    def examine(self, answers: Sequence[Answer], drawn: int) -> dict[str, Any]:
        """``drawn``: pictures beside those of the answers."""
        after = self._everywhere()
        left = [f"{answer.said}: lost afterwards" for answer in after if answer.picture is None]
        wrong = sum(not self._expect(answer) for answer in (*answers, *after))
        drawn += sum(answer.picture is not None for answer in (*answers, *after))
        before, self._charged = self._charged, self._ledger()
        return {
            "wrong": wrong,
            "double_charges": max(0, self._charged - before - drawn),
            "missing_charges": max(0, before + drawn - self._charged),
            "left": [*left, *self._left_behind()],
        }

    def _everywhere(self) -> list[Answer]:
        """The model as it is, drawn until every replica has drawn it."""
        answers: list[Answer] = []
        for _ in range(_ROUNDS):
            with ThreadPoolExecutor(2 * self.stage.replicas) as crowd:
                seeds = [SEEDS[i % len(SEEDS)] for i in range(2 * self.stage.replicas)]
                answers += crowd.map(lambda seed: ask(self.stage.door, seed), seeds)
            if len({answer.replica for answer in answers}) >= self.stage.replicas:
                break
        return answers

    def _ledger(self) -> int:
        """Pictures that were charged, once settling has come to rest."""
        meter = self.stage.backends().meter
        count, seen = -1, int(meter.totals(self.stage.tenant_id)["pictures"])
        deadline = time.monotonic() + 15.0
        while count != seen and time.monotonic() < deadline:
            time.sleep(1.0)
            count, seen = seen, int(meter.totals(self.stage.tenant_id)["pictures"])
        return seen

    def _left_behind(self) -> list[str]:
        """What should not be there once everything is at rest."""
        left = self.stage.rotten()
        for tier in self.stage.tiers():
            try:
                tier.check_integrity()
            except AssertionError as error:
                left.append(f"{tier.name} tier: {error}")
        try:
            self.stage.backends().meter.check_integrity()
        except AssertionError as error:
            left.append(f"books: {error}")
        status = self.stage.status()
        if status["waiting"] or any(replica["running"] for replica in status["replicas"]):
            left.append("requests that nobody waits for")
        if {*self.stage.weights().values()} != self._weights:
            left.append("weights that are not the base model's")
        return left
