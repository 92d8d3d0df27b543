"""Whom a death casts suspicion on."""

from __future__ import annotations

from router.suspicion import HELD_S, Suspicion


def test_twice_is_enough_and_not_for_ever() -> None:
    suspicion = Suspicion()
    suspicion.crashed(["x", "y"], now_s=0.0)
    assert suspicion.held(0.0) == {}
    suspicion.drew(["y"])
    suspicion.crashed(["x", "y"], now_s=10.0)
    assert suspicion.held(10.0) == {"x": HELD_S}
    assert suspicion.held(10.0 + HELD_S) == {}
    suspicion.crashed(["x"], now_s=20.0 + HELD_S)  # it is as good as new: once is not enough
    assert suspicion.held(20.0 + HELD_S) == {}


def test_what_has_been_drawn_well_is_above_suspicion() -> None:
    suspicion = Suspicion()
    suspicion.drew(["x"])
    for now_s in range(10):
        suspicion.crashed(["x"], float(now_s))
    assert suspicion.held(9.0) == {}
