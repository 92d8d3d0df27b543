"""Calls are repeated while the database is busy, and no others."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assets.sql import busy

ERRORS = (OperationalError("", {}, Exception("locked")), PoolTimeout("no free connection"))


@pytest.mark.parametrize("error", ERRORS, ids=["locked", "no connection"])
async def test_a_busy_database_is_asked_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "_DELAYS_S", (0.0, 0.0))
    asked: list[int] = []

    def call(number: int, *, fails: int) -> int:
        asked.append(number)
        if len(asked) <= fails:
            raise error
        return number

    assert await busy.persisted(call, 7, fails=2) == 7
    assert asked == [7, 7, 7]
    asked.clear()
    with pytest.raises(type(error)):
        await busy.persisted(call, 7, fails=9)
    assert len(asked) == 3


async def test_other_errors_are_raised_at_once() -> None:
    asked: list[int] = []

    def call() -> None:
        asked.append(1)
        raise ValueError

    with pytest.raises(ValueError):
        await busy.persisted(call)
    assert asked == [1]
