"""The quarantine of assets that crash replicas."""

from __future__ import annotations

from router.crash_quarantine import HELD_S, CrashQuarantine


def test_two_crashes_quarantine_an_asset_for_a_limited_time() -> None:
    quarantine = CrashQuarantine()
    quarantine.crashed("t", ["x", "y"], now_s=0.0)
    assert quarantine.held("t", ["x", "y"], 0.0) == {}
    quarantine.succeeded(["y"])
    quarantine.crashed("t", ["x", "y"], now_s=10.0)
    assert quarantine.held("t", ["x", "y"], 10.0) == {"x": HELD_S}
    assert quarantine.count(10.0) == 1
    assert quarantine.held("t", ["x"], 10.0 + HELD_S) == {}
    quarantine.crashed("t", ["x"], now_s=20.0 + HELD_S)  # the count starts again
    assert quarantine.count(20.0 + HELD_S) == 0


def test_crashes_far_apart_do_not_add_up() -> None:
    quarantine = CrashQuarantine()
    for index in range(5):
        quarantine.crashed("t", ["x"], now_s=index * (HELD_S + 1))
    assert quarantine.count(5 * HELD_S) == 0


def test_a_proven_asset_is_never_quarantined() -> None:
    quarantine = CrashQuarantine()
    quarantine.succeeded(["x"])
    for now_s in range(10):
        quarantine.crashed("t", ["x"], float(now_s))
    assert quarantine.count(9.0) == 0


def test_a_quarantine_does_not_affect_other_tenants() -> None:
    quarantine = CrashQuarantine()
    for now_s in (0.0, 1.0):
        quarantine.crashed("eve", ["public"], now_s)
    assert quarantine.held("eve", ["public"], 1.0)
    assert quarantine.held("bob", ["public"], 1.0) == {}
