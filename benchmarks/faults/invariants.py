"""Looking at the books: what must hold of a platform at rest, whatever has happened to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import httpx

from assets.storage.signing import Signer
from benchmarks.faults.client import SEEDS, Answer, ask
from benchmarks.faults.harness import Harness

_QUIET_S = 120.0
#: Settling that the database refused is tried again for as long.
_SETTLED_S = 15.0
_ROUNDS = 20


class Invariants:
    """Of one stage, opened before anything happens to it."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        #: The picture of each seed with the assets that were wanted, as first drawn.
        self._golden: dict[tuple[int, str], str] = {}
        self._signer = Signer(harness.settings.secret_bytes)
        self._charged: Counter[str] = Counter()
        self._weights: set[str] | None = None
        found = self.examine([ask(harness.endpoint, seed) for seed in SEEDS])
        if any(found.values()):
            raise SystemExit(f"before anything was harmed: {found}")

    def _expect(self, answer: Answer) -> bool:
        """Whether it is the picture that its request has always had; the first says which."""
        if answer.image is None:
            return True  # lost, which is counted elsewhere
        known = self._golden.setdefault((answer.seed, answer.wanted), answer.image)
        return answer.image == known

    def forgive(self) -> None:
        """What was drawn since the last look is not counted."""
        self.await_quiet()
        self._charged = self._ledger()

    def await_quiet(self) -> float:
        """When every replica was up and idle and nothing waited; at the latest after a while."""
        deadline = time.monotonic() + _QUIET_S
        while not self._is_quiet() and time.monotonic() < deadline:
            time.sleep(0.2)
        return time.monotonic()

    def _is_quiet(self) -> bool:
        try:
            status = self.harness.status()
            is_idle = not status["waiting"] and not any(r["running"] for r in status["replicas"])
            return is_idle and len(self.harness.up()) >= self.harness.replicas
        except (httpx.HTTPError, KeyError, ValueError):
            return False

    def examine(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Of all that was asked since the last look. What has been asked with an asset is asked
        again, by every replica; then each draws the model as it is, whose weights are known."""
        again = {(a.seed, a.wanted) for a in answers if a.wanted != "{}"}
        after = [
            answer for seed, wanted in sorted(again) for answer in self._everywhere(seed, wanted)
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
        """As what it stands in the ledger."""
        tenant_id = self.harness.tenant_id
        return answer.charge or "job_" + self._signer.derived("job", tenant_id, answer.key)

    def _everywhere(self, seed: int, wanted: str) -> list[Answer]:
        """The same picture, until every replica has drawn it."""
        answers: list[Answer] = []
        count = 2 * self.harness.replicas
        for _ in range(_ROUNDS):
            with ThreadPoolExecutor(count) as workload:
                ask_one = partial(ask, self.harness.endpoint, seed, json.loads(wanted))
                answers += [
                    one.result() for one in [workload.submit(ask_one) for _ in range(count)]
                ]
            if (
                len({answer.replica for answer in answers if answer.replica})
                >= self.harness.replicas
            ):
                return answers
        return [*answers, replace(answers[-1], image=None, said="not drawn by every replica")]

    def _ledger(self) -> Counter[str]:
        """How many pictures each request was charged, once settling has come to rest."""
        meter = self.harness.backends().meter
        count = -1
        while count != (count := int(meter.totals(self.harness.tenant_id)["pictures"])):
            time.sleep(1.0)
        return Counter(
            usage.reference.partition("/")[0].partition("@")[0]
            for usage in meter.every_usage(self.harness.tenant_id)
            if usage.kind == "picture"
        )

    def _left_behind(self) -> list[str]:
        """What should not be there once everything is at rest."""
        left = [*self.harness.rotten(), *self.harness.leased()]
        for tier in self.harness.tiers():
            try:
                tier.check_integrity()
            except AssertionError as error:
                left.append(f"{tier.name} tier: {error}")
        try:
            self.harness.backends().meter.check_integrity()
        except AssertionError as error:
            left.append(f"books: {error}")
        if not self._is_quiet():
            left.append("a replica that is away, or requests that nobody waits for")
        weights = {*self.harness.weights().values()}
        self._weights = self._weights or weights
        if len(weights) != 1 or weights != self._weights:
            left.append("weights that are not the base model's")
        return left
