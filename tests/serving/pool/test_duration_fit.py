"""The fit finds the prices of two counts, follows a change and is never negative."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pool.duration_fit import DurationFit


def fitted(first_s: float, second_s: float, count: int, seed: int = 1) -> DurationFit:
    fit, rng = DurationFit(), random.Random(seed)
    for _ in range(count):
        calls, work = rng.randint(1, 50), rng.randint(1, 1000)
        fit.add(calls, work, first_s * calls + second_s * work)
    return fit


def test_prices_are_found_and_followed() -> None:
    assert DurationFit().prices() == (0.0, 0.0)
    fit = fitted(0.03, 0.002, 10)
    assert fit.prices() == pytest.approx((0.03, 0.002))
    rng = random.Random(2)
    for _ in range(200):
        calls, work = rng.randint(1, 50), rng.randint(1, 1000)
        fit.add(calls, work, 0.01 * calls + 0.004 * work)
    assert fit.prices() == pytest.approx((0.01, 0.004), rel=1e-3)


def test_one_proportion_is_one_price() -> None:
    fit = DurationFit()
    for _ in range(5):
        fit.add(10, 100, 2.0)
    assert fit.prices() == pytest.approx((0.0, 0.02))


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(1, 10**6), st.floats(1e-3, 1e3)), min_size=1
    )
)
def test_prices_are_never_negative(rows: list[tuple[int, int, float]]) -> None:
    fit = DurationFit()
    for row in rows:
        fit.add(*row)
    first, second = fit.prices()
    assert first >= 0
    assert second >= 0
    assert first + second > 0
