"""Seeds: fixed, listed and random."""

from __future__ import annotations

from serving.generation.seeds import fixed_seeds, json_seed


def test_fixed_seeds() -> None:
    assert fixed_seeds(5, 3) == (5, 6, 7)
    assert fixed_seeds(2**64 - 1, 2) == (2**64 - 1, 0)
    seeds = fixed_seeds([1, None], 3)
    assert seeds[0] == 1
    assert len(seeds) == 3
    assert len(set(fixed_seeds(None, 16))) == 16


def test_seeds_beyond_a_double_are_strings() -> None:
    assert json_seed(2**53 - 1) == 2**53 - 1
    assert json_seed(2**64 - 1) == "18446744073709551615"
