"""Seeds of images, up to 2**64 − 1. Beyond 2**53 a JSON number loses digits in many clients."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

MAX_SEED = 2**64 - 1
#: Exact as a double.
MAX_JSON_INTEGER = 2**53 - 1
#: Of random seeds, which any program can repeat.
_MAX_RANDOM = 2**32 - 1


def fixed_seeds(given: int | Sequence[int | None] | None, count: int) -> tuple[int, ...]:
    """Return one seed per image: a single seed counts up, missing ones are random."""
    if isinstance(given, int):
        return tuple((given + index) % (MAX_SEED + 1) for index in range(count))
    listed = list(given or [])[:count]
    listed += [None] * (count - len(listed))
    return tuple(secrets.randbelow(_MAX_RANDOM + 1) if seed is None else seed for seed in listed)


def json_seed(seed: int) -> int | str:
    """Return the seed as JSON clients can read it."""
    return seed if seed <= MAX_JSON_INTEGER else str(seed)
