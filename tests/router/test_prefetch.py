"""Prefetch predictions, budget and precision."""

from __future__ import annotations

from assets.content import Blob
from router.prefetch import Prefetcher

A, B, C = (Blob(name, "", 100) for name in "abc")


def test_a_returning_tenant_gets_its_other_recent_assets() -> None:
    prefetcher = Prefetcher(session_s=100.0)
    assert prefetcher.record_request("t", [A], 0.0) == []
    assert prefetcher.record_request("t", [B], 10.0) == []  # resident within a session
    assert prefetcher.record_request("t", [B], 1000.0) == [A]
    assert prefetcher.record_request("u", [B], 1005.0) == []  # another tenant's history
    assert prefetcher.record_request("t", [A], 1010.0) == []
    assert (prefetcher.guessed, prefetcher.came_true, prefetcher.precision) == (1, 1, 1.0)


def test_the_budget_is_in_bytes_per_minute() -> None:
    prefetcher = Prefetcher(session_s=100.0, depth=2, budget_bytes=150)
    for tenant in ("t", "u"):
        prefetcher.record_request(tenant, [A, B], 0.0)
    assert prefetcher.record_request("t", [C], 1000.0) == [B]
    assert prefetcher.record_request("u", [C], 1010.0) == []
    assert prefetcher.record_request("u", [C], 2000.0) == [B]


def test_imprecise_predictions_become_rare() -> None:
    prefetcher = Prefetcher(session_s=1.0)

    def predicts(index: int) -> bool:
        """Return for a new asset: no prediction comes true."""
        return bool(prefetcher.record_request("t", [Blob(f"new-{index}", "", 100)], 10.0 * index))

    assert sum(predicts(index) for index in range(110)) >= 100
    assert prefetcher.precision == 0.0
    assert sum(predicts(index) for index in range(110, 150)) == 4
