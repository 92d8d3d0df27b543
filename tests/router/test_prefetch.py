"""Guesses about what a tenant will ask for next, and their bookkeeping."""

from __future__ import annotations

from assets.content import Blob
from router.prefetch import Prefetcher

A, B, C = (Blob(name, "", 100) for name in "abc")


def test_who_comes_back_is_offered_what_it_had_beside() -> None:
    guess = Prefetcher(session_s=100.0)
    assert guess.asked("t", [A], 0.0) == []
    assert guess.asked("t", [B], 10.0) == []  # within a session it is near anyway
    assert guess.asked("t", [B], 1000.0) == [A]
    assert guess.asked("u", [B], 1005.0) == []  # somebody else's habits are no guess
    assert guess.asked("t", [A], 1010.0) == []
    assert (guess.guessed, guess.came_true, guess.precision) == (1, 1, 1.0)


def test_a_budget_of_bytes_a_minute() -> None:
    guess = Prefetcher(session_s=100.0, depth=2, budget_bytes=150)
    for tenant in ("t", "u"):
        guess.asked(tenant, [A, B], 0.0)
    assert guess.asked("t", [C], 1000.0) == [B]
    assert guess.asked("u", [C], 1010.0) == []
    assert guess.asked("u", [C], 2000.0) == [B]


def test_poor_guesses_become_rare() -> None:
    guess = Prefetcher(session_s=1.0)

    def comes_back(index: int) -> bool:
        """For something new every time."""
        return bool(guess.asked("t", [Blob(f"new-{index}", "", 100)], 10.0 * index))

    assert sum(comes_back(index) for index in range(110)) >= 100
    assert guess.precision == 0.0
    assert sum(comes_back(index) for index in range(110, 150)) == 4
