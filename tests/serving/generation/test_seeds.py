"""Seeds: fixed, listed and random."""

from __future__ import annotations

from serving.generation.service import fixed_seeds


def test_fixed_seeds() -> None:
    assert fixed_seeds(5, 3) == (5, 6, 7)
    assert fixed_seeds(2**32 - 1, 2) == (2**32 - 1, 0)
    seeds = fixed_seeds([1, None], 3)
    assert seeds[0] == 1
    assert len(seeds) == 3
    assert len(set(fixed_seeds(None, 16))) == 16
