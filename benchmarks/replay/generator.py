"""Generate a request trace like a production service's, from a seed.

Reproduces published figures of 24 days of a real Stable Diffusion service; ``--describe`` prints
them.

Tenants and assets come from a walk over *sessions* that alternate between a few recipes; arrivals
from a log-normal rate that changes every minute, plus a long silence.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from benchmarks.replay.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Population:
    """The generator's parameters: published figures, and values fitted so that a cache and a random
    router perform as on the real stream (``lora_zipf`` to ``repeats``, from ``sessions`` on)."""

    checkpoints: int = 105
    checkpoint_zipf: float = 1.43
    #: About 874 of them are used in 100,000 requests.
    loras: int = 960
    lora_zipf: float = 1.12
    private_share: float = 0.83
    tenants: int = 400
    lora_share: float = 0.22
    one_lora_share: float = 0.93
    most_loras: int = 6
    odd_scale_share: float = 0.44
    usual_steps_share: float = 0.88
    #: Probability that a session keeps its recipe; a change may pick an identical one.
    repeats: float = 0.5
    #: Requests per minute (median, maximum); the gaps' squared coefficient of variation.
    median_a_minute: float = 2.0
    most_a_minute: float = 64.0
    gap_scv: float = 144.0
    #: Duration of a burst.
    rush_minutes: float = 5.0
    #: Concurrent.
    sessions: int = 3
    #: Mean per session.
    session_requests: float = 13.0
    #: Most recipes in a session.
    favourites: int = 4
    #: Probability that the next request is from the same session.
    stays: float = 0.7
    #: Probability that a session with LoRAs begins with a never-used one.
    new_share: float = 0.4


class Zipf:
    """Ranks from 0, the most popular; weight (r + 1)^-exponent."""

    def __init__(self, count: int, exponent: float) -> None:
        self.weights = [1 / (rank**exponent) for rank in range(1, count + 1)]
        self._sums = list(accumulate(self.weights))

    def pick(self, rng: random.Random) -> int:
        return bisect(self._sums, rng.random() * self._sums[-1])


#: A checkpoint, and LoRAs with scales.
_Recipe = tuple[str, tuple[tuple[str, float], ...]]


@dataclass(slots=True)
class _Session:
    tenant: str
    left: int
    favourites: list[_Recipe] = field(default_factory=list)
    now: int = 0


def generate(
    requests: int, seed: int = 0, population: Population | None = None
) -> list[TraceRequest]:
    """Generate ``requests`` in order of arrival."""
    people = population or Population()
    rng = random.Random(seed)
    arrivals = _arrivals(requests, people, rng)
    walk = _Walk(people, rng)
    trace = []
    for arrival_s in arrivals:
        tenant, (checkpoint, loras) = walk.step()
        steps = 30 if rng.random() < people.usual_steps_share else rng.choice((20, 25, 40, 50))
        trace.append(TraceRequest(arrival_s, tenant, checkpoint, loras, steps))
    return trace


class _Walk:
    def __init__(self, people: Population, rng: random.Random) -> None:
        self._people = people
        self._rng = rng
        self._checkpoints = Zipf(people.checkpoints, people.checkpoint_zipf)
        self._loras = Zipf(people.loras, people.lora_zipf)
        self._owner = [
            rng.randrange(people.tenants) if rng.random() < people.private_share else None
            for _ in range(people.loras)
        ]
        self._of_tenant: dict[int, list[int]] = {}
        for lora, owner in enumerate(self._owner):
            if owner is not None:
                self._of_tenant.setdefault(owner, []).append(lora)
        #: Never-used LoRAs: new ones appear throughout.
        self._unseen = rng.sample(range(people.loras), people.loras)
        self._sessions = [self._begin() for _ in range(people.sessions)]
        self._last = 0

    def step(self) -> tuple[str, _Recipe]:
        rng = self._rng
        if rng.random() >= self._people.stays:
            self._last = rng.randrange(len(self._sessions))
        session = self._sessions[self._last]
        if session.left == 0:
            session = self._sessions[self._last] = self._begin()
        elif rng.random() >= self._people.repeats and len(session.favourites) > 1:
            session.now += rng.randrange(1, len(session.favourites))
            session.now %= len(session.favourites)
        session.left -= 1
        return session.tenant, session.favourites[session.now]

    def _begin(self) -> _Session:
        rng, people = self._rng, self._people
        wants_loras = rng.random() < people.lora_share
        tenant = rng.randrange(people.tenants)
        own: list[int] = []
        if wants_loras:
            first = self._first_lora()
            owner = self._owner[first]
            tenant = tenant if owner is None else owner
            own = [first]
            mine = self._of_tenant.get(tenant, [])
            for _ in range(people.favourites - 1):
                own.append(rng.choice(mine) if mine and rng.random() < 0.7 else self._public())
        # Geometric: most sessions are short, some last all day.
        left = 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / people.session_requests))
        session = _Session(f"t{tenant}", left)
        checkpoint = self._checkpoints.pick(rng)
        for index in range(rng.randint(2, people.favourites)):
            if index and rng.random() < 0.5:
                checkpoint = self._checkpoints.pick(rng)
            session.favourites.append((f"c:{checkpoint}", self._uses(own, index)))
        return session

    def _first_lora(self) -> int:
        if self._unseen and self._rng.random() < self._people.new_share:
            return self._unseen.pop()
        return self._loras.pick(self._rng)

    def _public(self) -> int:
        while True:
            lora = self._loras.pick(self._rng)
            if self._owner[lora] is None:
                return lora

    def _uses(self, own: Sequence[int], index: int) -> tuple[tuple[str, float], ...]:
        rng = self._rng
        if not own:
            return ()
        chosen = [own[index % len(own)]]
        if rng.random() >= self._people.one_lora_share:
            extra = rng.randint(1, self._people.most_loras - 1)
            chosen += [self._public() for _ in range(extra)]
        scales = (0.5, 0.6, 0.7, 0.8, 0.9)
        return tuple(
            (
                f"l:{lora}",
                rng.choice(scales) if rng.random() < self._people.odd_scale_share else 1.0,
            )
            for lora in dict.fromkeys(chosen)
        )


def _arrivals(requests: int, people: Population, rng: random.Random) -> list[float]:
    """Return arrival times in seconds."""
    spread = math.log(people.most_a_minute / people.median_a_minute) / 4.0
    keep = math.exp(-1 / people.rush_minutes)
    level, minute, times = rng.gauss(0, 1), 0, list[float]()
    while len(times) < requests:
        level = keep * level + math.sqrt(1 - keep * keep) * rng.gauss(0, 1)
        rate = min(people.most_a_minute, people.median_a_minute * math.exp(spread * level))
        count = _poisson(rate, rng)
        times += sorted(60 * (minute + rng.random()) for _ in range(count))
        minute += 1
    del times[requests:]
    return _with_a_silence(times, people.gap_scv, rng)


def _with_a_silence(times: list[float], scv: float, rng: random.Random) -> list[float]:
    """Insert a pause that brings the gaps' squared coefficient of variation to ``scv``."""
    gaps = [b - a for a, b in pairwise(times)]
    if len(gaps) < 1000:
        return times  # too few gaps
    count, total, squares = len(gaps), sum(gaps), sum(gap * gap for gap in gaps)
    pauses = 1
    # count × (squares + pauses × x²) / (total + pauses × x)² = scv + 1, solved for x.
    a = count * pauses - (scv + 1) * pauses * pauses
    b = -2 * (scv + 1) * total * pauses
    c = count * squares - (scv + 1) * total * total
    pause_s = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    places = sorted(rng.sample(range(1, len(times)), pauses))
    shifted, added, at = [], 0.0, 0
    for index, time_s in enumerate(times):
        if at < pauses and index == places[at]:
            added += pause_s
            at += 1
        shifted.append(time_s + added)
    return shifted


def _poisson(mean: float, rng: random.Random) -> int:
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count
