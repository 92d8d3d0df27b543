"""Whom a death casts suspicion on."""

from __future__ import annotations

from router.crash_quarantine import HELD_S, CrashQuarantine


def test_twice_is_enough_and_not_for_ever() -> None:
    suspicion = CrashQuarantine()
    suspicion.crashed("t", ["x", "y"], now_s=0.0)
    assert suspicion.held("t", ["x", "y"], 0.0) == {}
    suspicion.succeeded(["y"])
    suspicion.crashed("t", ["x", "y"], now_s=10.0)
    assert suspicion.held("t", ["x", "y"], 10.0) == {"x": HELD_S}
    assert suspicion.count(10.0) == 1
    assert suspicion.held("t", ["x"], 10.0 + HELD_S) == {}
    suspicion.crashed("t", ["x"], now_s=20.0 + HELD_S)  # as good as new: once is not enough
    assert suspicion.count(20.0 + HELD_S) == 0


def test_two_that_are_far_apart_are_one() -> None:
    suspicion = CrashQuarantine()
    for index in range(5):
        suspicion.crashed("t", ["x"], now_s=index * (HELD_S + 1))
    assert suspicion.count(5 * HELD_S) == 0


def test_what_has_been_drawn_well_is_above_suspicion() -> None:
    suspicion = CrashQuarantine()
    suspicion.succeeded(["x"])
    for now_s in range(10):
        suspicion.crashed("t", ["x"], float(now_s))
    assert suspicion.count(9.0) == 0


def test_nobody_has_an_asset_refused_to_others() -> None:
    suspicion = CrashQuarantine()
    for now_s in (0.0, 1.0):
        suspicion.crashed("eve", ["public"], now_s)
    assert suspicion.held("eve", ["public"], 1.0)
    assert suspicion.held("bob", ["public"], 1.0) == {}
