"""Errors' HTTP statuses and codes, after crossing processes."""

from __future__ import annotations

import pickle

import pytest

from assets.errors import Forbidden
from serving.api.errors import describe
from serving.errors import (
    AssetFault,
    NotFinite,
    OutOfMemory,
    Quarantined,
    UnexpectedEngineError,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFinite("the LoRA {assets} is wild", ("k",)), 422, "not_finite"),
        (Quarantined("{assets} is refused", ("k",)), 422, "quarantined"),
        (Forbidden("reader", "delete"), 403, "forbidden"),
        (UnexpectedEngineError("odd"), 500, "drawing_failed"),
        (OutOfMemory("full"), 503, "out_of_memory"),
    ],
)
def test_failures_cross_processes_and_become_http(error: Exception, status: int, code: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
    assert (describe(copy).status, describe(copy).code) == (status, code)
    if isinstance(copy, AssetFault):
        assert str(copy.named({"k": "mine"})) == str(error).replace("k is", "'mine' is")
