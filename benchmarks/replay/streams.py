"""Named streams of uses that evaluate eviction: generated ones and synthetic patterns.

The ``HELD_OUT`` streams were not used in development. In synthetic ones, half of the assets belong
to one of 60 tenants each; any tenant uses the others.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, islice
from zlib import crc32

from benchmarks.replay.caches import Use, lora_uses
from benchmarks.replay.generator import Population, Zipf, generate

#: Per synthetic stream; a generated one has the LoRA uses of 100,000 requests.
USES = 25_000
_ASSETS = 960
_TENANTS = 60
#: Mean, as in the generated streams.
_GAP_S = 77.0

Stream = Callable[[int], list[Use]]


def _timed(keys: Iterable[str], rng: random.Random) -> list[Use]:
    now_s, uses = 0.0, []
    for key in islice(keys, USES):
        now_s += rng.expovariate(1 / _GAP_S)
        number = crc32(key.encode())
        tenant = number % _TENANTS if number & 1024 else rng.randrange(_TENANTS)
        uses.append((now_s, f"t{tenant}", key))
    return uses


def generated(seed: int = 0, **habits: float) -> list[Use]:
    """Return the generator's LoRA uses; ``habits`` are ``Population`` fields."""
    return lora_uses(generate(100_000, seed, replace(Population(), **habits)))  # type: ignore[arg-type]


def at_speed(uses: list[Use], speed: float) -> list[Use]:
    """Return the uses at ``speed`` times the rate."""
    return [(at_s / speed, tenant, key) for at_s, tenant, key in uses]


def zipf(seed: int, exponent: float) -> list[Use]:
    """Independent uses, without locality."""
    rng, popular = random.Random(seed), Zipf(_ASSETS, exponent)
    return _timed((f"z{popular.pick(rng)}" for _ in range(USES)), rng)


def zipf_with_sessions(seed: int, exponent: float, length: int = 12) -> list[Use]:
    """Four concurrent sessions of four assets each."""
    rng, popular = random.Random(seed), Zipf(_ASSETS, exponent)

    def keys() -> Iterator[str]:
        sessions: list[list[int]] = []
        while True:
            if len(sessions) < 4:
                sessions.append([popular.pick(rng) for _ in range(4)])
            session = rng.choice(sessions)
            yield f"z{rng.choice(session)}"
            if rng.random() < 1 / length:
                sessions.remove(session)

    return _timed(keys(), rng)


def scan(seed: int) -> list[Use]:
    """Every asset is used once."""
    return _timed((f"s{index}" for index in range(USES)), random.Random(seed))


def scans_in_zipf(seed: int, slots: int) -> list[Use]:
    """Zipf with periodic scans of three cache sizes of one-time assets."""
    rng, popular = random.Random(seed), Zipf(_ASSETS, 1.0)

    def keys() -> Iterator[str]:
        fresh = 0
        while True:
            for _ in range(20 * slots):
                yield f"z{popular.pick(rng)}"
            for _ in range(3 * slots):
                fresh += 1
                yield f"s{fresh}"

    return _timed(keys(), rng)


def one_timers_in_zipf(seed: int) -> list[Use]:
    """Zipf; every fourth use is of a one-time asset."""
    rng, popular = random.Random(seed), Zipf(_ASSETS, 1.0)
    return _timed((f"s{i}" if i % 4 == 0 else f"z{popular.pick(rng)}" for i in range(USES)), rng)


def loop(seed: int, slots: int, over: float) -> list[Use]:
    """A loop over ``over`` times as many assets as slots."""
    count = math.ceil(slots * over)
    return _timed((f"p{index % count}" for index in range(USES)), random.Random(seed))


def drift(seed: int) -> list[Use]:
    """Zipf; popularity shifts by one rank every 15 uses."""
    rng, popular = random.Random(seed), Zipf(_ASSETS, 1.0)
    return _timed((f"z{(popular.pick(rng) + i // 15) % 5000}" for i in range(USES)), rng)


def jumps(seed: int) -> list[Use]:
    """Zipf; popularity is shuffled every 3,000 uses."""
    rng, popular = random.Random(seed), Zipf(_ASSETS, 1.0)

    def keys() -> Iterator[str]:
        names = list(range(_ASSETS))
        while True:
            rng.shuffle(names)
            for _ in range(3000):
                yield f"z{names[popular.pick(rng)]}"

    return _timed(keys(), rng)


def bursts(seed: int, at_once: int, uses: int) -> list[Use]:
    """``at_once`` active assets, each used ``uses`` times on average, then never."""
    rng = random.Random(seed)

    def keys() -> Iterator[str]:
        live: list[int] = []
        fresh = 0
        while True:
            if len(live) < at_once:
                fresh += 1
                live.append(fresh)
            index = rng.randrange(len(live))
            yield f"b{live[index]}"
            if rng.random() < 1 / uses:
                live[index] = live[-1]
                live.pop()

    return _timed(keys(), rng)


def churn(seed: int, days: float) -> list[Use]:
    """Tenants with private and public assets, which stay ``days`` days on average."""
    rng, popular = random.Random(seed), Zipf(150, 1.0)
    now_s, serial = 0.0, 0
    uses: list[Use] = []

    def arrive() -> tuple[str, float, list[str]]:
        nonlocal serial
        serial += 1
        own = [f"o{serial}.{index}" for index in range(rng.randint(1, 8))]
        return f"t{serial}", now_s + rng.expovariate(1 / (days * 86_400)), own

    people = [arrive() for _ in range(_TENANTS)]
    sessions: list[tuple[str, list[str]]] = []
    while len(uses) < USES:
        now_s += rng.expovariate(1 / _GAP_S)
        people = [person if person[1] >= now_s else arrive() for person in people]
        if len(sessions) < 3:
            tenant, _, own = rng.choice(people)
            favourites = [
                rng.choice(own) if rng.random() < 0.7 else f"z{popular.pick(rng)}" for _ in range(4)
            ]
            sessions.append((tenant, favourites))
        session = rng.choice(sessions)
        uses.append((now_s, session[0], rng.choice(session[1])))
        if rng.random() < 1 / 10:
            sessions.remove(session)
    return uses


def phases(seed: int) -> list[Use]:
    """Alternate bursts (recency wins) and one-timers in Zipf (visits wins)."""
    first, second = bursts(seed, 60, 8), one_timers_in_zipf(seed + 1)
    keys = [(first if (i // 4000) % 2 == 0 else second)[i][2] for i in range(USES)]
    return _timed(keys, random.Random(seed + 2))


def stack(seed: int) -> list[Use]:
    """The next asset's depth in the recency stack follows a power law."""
    rng = random.Random(seed)

    def keys() -> Iterator[str]:
        order: list[str] = []
        fresh = 0
        while True:
            depth = int(rng.paretovariate(0.8)) - 1
            if depth >= min(len(order), 3001):
                fresh += 1
                order.append(f"k{fresh}")
            else:
                order.append(order.pop(len(order) - 1 - depth))
            yield order[-1]

    return _timed(keys(), rng)


def releases(seed: int) -> list[Use]:
    """A constant flow of new assets; popularity falls with age."""
    rng = random.Random(seed)

    def keys() -> Iterator[str]:
        appeal: list[float] = []
        for index in range(USES):
            if index % 25 == 0:
                appeal.append(math.exp(rng.gauss(0, 1.5)))
                sums = list(
                    accumulate(
                        each / (1 + (index - 25 * born) / 200) ** 0.8
                        for born, each in enumerate(appeal)
                    )
                )
            yield f"r{bisect(sums, rng.random() * sums[-1])}"

    return _timed(keys(), rng)


def day_and_night(seed: int) -> list[Use]:
    """Two populations alternate every twelve hours."""
    day, night = zipf_with_sessions(seed, 0.9), zipf_with_sessions(seed + 1, 0.9)
    turn = int(43_200 / _GAP_S)
    keys = ["d" + day[i][2] if (i // turn) % 2 else "n" + night[i][2] for i in range(USES)]
    return _timed(keys, random.Random(seed))


def loop_and_zipf(seed: int, slots: int) -> list[Use]:
    """Half loops over as many assets as slots, half Zipf."""
    rng, popular = random.Random(seed), Zipf(500, 1.1)

    def keys() -> Iterator[str]:
        at = 0
        while True:
            if rng.random() < 0.5:
                at += 1
                yield f"p{at % slots}"
            else:
                yield f"z{popular.pick(rng)}"

    return _timed(keys(), rng)


def _of_seed(seed: int) -> Stream:
    return lambda _: generated(seed)


#: By name, from the number of slots.
TUNED_ON: Mapping[str, Stream] = {
    "generator": lambda _: generated(),
    **{f"generator, seed {seed}": _of_seed(seed) for seed in range(1, 6)},
    "generator, short sessions": lambda _: generated(11, session_requests=5.0),
    "generator, long sessions": lambda _: generated(12, session_requests=40.0),
    "generator, flat popularity": lambda _: generated(14, lora_zipf=0.8),
    "generator, steep popularity": lambda _: generated(15, lora_zipf=1.4),
    "generator, half private": lambda _: generated(16, private_share=0.5),
    "generator, nearly all private": lambda _: generated(17, private_share=0.95),
    "generator, 10 times as fast": lambda _: at_speed(generated(56), 10),
    "Zipf 0.7": lambda _: zipf(21, 0.7),
    "Zipf 1.0": lambda _: zipf(22, 1.0),
    "Zipf 0.7 with sessions": lambda _: zipf_with_sessions(24, 0.7, 25),
    "Zipf 1.0 with sessions": lambda _: zipf_with_sessions(23, 1.0),
    "scan": lambda _: scan(25),
    "scans in Zipf": lambda slots: scans_in_zipf(26, slots),
    "one-timers in Zipf": lambda _: one_timers_in_zipf(27),
    "loop of 1.1 caches": lambda slots: loop(28, slots, 1.1),
    "loop of 1.5 caches": lambda slots: loop(29, slots, 1.5),
    "drift": lambda _: drift(30),
    "jumps": lambda _: jumps(31),
    "bursts": lambda _: bursts(32, 40, 12),
    "many short bursts": lambda _: bursts(33, 150, 6),
    "churn": lambda _: churn(34, 6.0),
    "fast churn": lambda _: churn(35, 2.0),
}
HELD_OUT: Mapping[str, Stream] = {
    "phases": lambda _: phases(51),
    "stack": lambda _: stack(52),
    "releases": lambda _: releases(53),
    "day and night": lambda _: day_and_night(54),
    "loop and Zipf": lambda slots: loop_and_zipf(59, slots),
    "bursts, 10 times as fast": lambda _: at_speed(bursts(60, 80, 5), 10),
    "generator, 30 times as fast": lambda _: at_speed(generated(61), 30),
}
