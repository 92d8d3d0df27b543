"""The invariants of an idle platform, whatever faults it went through."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2

from assets.storage.signing import Signer
from benchmarks.faults.client import SEEDS, Answer, ask
from benchmarks.faults.harness import Harness

_QUIET_S = 120.0
#: For so long the platform retries settlements that the database refused.
_SETTLED_S = 15.0
_ROUNDS = 20


class Invariants:
    """The checks of one platform; create it before the first fault."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        #: The first image of each (seed, assets); later ones must be equal.
        self._golden: dict[tuple[int, str], str] = {}
        self._signer = Signer(harness.settings.secret_bytes)
        self._charged: Counter[str] = Counter()
        self._weights: set[str] | None = None
        findings = self.examine([ask(harness.endpoint, seed) for seed in SEEDS])
        if any(findings.values()):
            raise SystemExit(f"invariants violated before any fault was injected: {findings}")

    def _expect(self, answer: Answer) -> bool:
        """Return whether the image equals the first one of the same request."""
        if answer.image is None:
            return True  # lost requests are counted elsewhere
        known = self._golden.setdefault((answer.seed, answer.selection), answer.image)
        return answer.image == known

    def forgive(self) -> None:
        """Leave the charges since the last check out of the next one."""
        self.await_quiet()
        self._charged = self._ledger()

    def await_quiet(self) -> float:
        """Wait until all replicas are up and idle and the queue is empty, or for _QUIET_S.

        Returns the monotonic time of that moment.
        """
        deadline = time.monotonic() + _QUIET_S
        while not self._is_quiet() and time.monotonic() < deadline:
            time.sleep(0.2)
        return time.monotonic()

    def _is_quiet(self) -> bool:
        try:
            status = self.harness.status()
            is_idle = not status["waiting"] and not any(r["running"] for r in status["replicas"])
            return is_idle and len(self.harness.up()) >= self.harness.replicas
        except (httpx2.HTTPError, KeyError, ValueError):
            return False

    def examine(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Check images, charges and leftovers of all requests since the last check.

        Requests with assets are repeated on every replica; then every replica generates with the
        base model alone, whose weights' digest is known.
        """
        again = {(a.seed, a.selection) for a in answers if a.selection != "{}"}
        after = [
            answer
            for seed, selection in sorted(again)
            for answer in self._everywhere(seed, selection)
        ]
        after += self._everywhere(SEEDS[0], "{}")
        left = [f"{answer.said}: lost afterwards" for answer in after if answer.image is None]
        answers = [*answers, *after]
        wrong = sum(not self._expect(answer) for answer in answers)
        generated = {self._charge(answer) for answer in answers if answer.image is not None}
        before, deadline = self._charged, time.monotonic() + _SETTLED_S
        while True:
            self._charged = self._ledger()
            charges = self._charged - before
            if generated <= charges.keys() or time.monotonic() > deadline:
                break
        return {
            "wrong": wrong,
            "double_charges": sum(n - (charge in generated) for charge, n in charges.items()),
            "missing_charges": len(generated - charges.keys()),
            "left": [*left, *self._left_behind()],
        }

    def _charge(self, answer: Answer) -> str:
        """Return the ledger's reference of the answered request."""
        tenant_id = self.harness.tenant_id
        return answer.charge or "job_" + self._signer.derived("job", tenant_id, answer.key)

    def _everywhere(self, seed: int, selection: str) -> list[Answer]:
        """Repeat a request until every replica has generated its image."""
        answers: list[Answer] = []
        count = 2 * self.harness.replicas
        for _ in range(_ROUNDS):
            with ThreadPoolExecutor(count) as pool:
                ask_one = partial(ask, self.harness.endpoint, seed, json.loads(selection))
                requests = [pool.submit(ask_one) for _ in range(count)]
                answers += [request.result() for request in requests]
            replicas = {answer.replica for answer in answers if answer.replica}
            if len(replicas) >= self.harness.replicas:
                return answers
        return [*answers, replace(answers[-1], image=None, said="not generated by every replica")]

    def _ledger(self) -> Counter[str]:
        """Return how many images each request was charged for, once the ledger is stable."""
        meter = self.harness.backends().meter
        count = -1
        while count != (count := int(meter.totals(self.harness.tenant_id)["pictures"])):
            time.sleep(1.0)
        return Counter(
            usage.reference.partition("/")[0].partition("@")[0]
            for usage in meter.iter_usage(self.harness.tenant_id)
            if usage.kind == "picture"
        )

    def _left_behind(self) -> list[str]:
        """Return what an idle platform must not have: wrong or leased files, inconsistent tiers or
        ledger, missing replicas, open requests, wrong weights."""
        left = [*self.harness.rotten(), *self.harness.leased()]
        for tier in self.harness.tiers():
            try:
                tier.check_integrity()
            except AssertionError as error:
                left.append(f"{tier.name} tier: {error}")
        try:
            self.harness.backends().meter.check_integrity()
        except AssertionError as error:
            left.append(f"ledger: {error}")
        if not self._is_quiet():
            left.append("a replica is missing, or requests are queued or running without a client")
        weights = {*self.harness.weights().values()}
        self._weights = self._weights or weights
        if len(weights) != 1 or weights != self._weights:
            left.append("the replicas' working weights are not the base model's")
        return left
