"""Errors survive encoding, and errors of a newer version are understood as far as possible."""

from __future__ import annotations

import msgspec
import pytest

from assets.errors import AssetNotFound, InvalidAsset, StoreUnavailable
from orchestrator.errors import SourceDown, TierError, TierFull
from serving.errors import (
    DeadlineExceeded,
    NotFinite,
    Refused,
    ReplicaDied,
    ReplicaLost,
    UnexpectedEngineError,
)
from serving.generation.failure import Failure


def copy(error: Exception) -> Exception:
    failure = Failure.of(error)
    assert failure is not None
    return msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure).error()


def charged(error: ReplicaLost, engine_s: float) -> ReplicaLost:
    error.engine_s = engine_s
    return error


@pytest.mark.parametrize(
    "error",
    [
        AssetNotFound("style"),
        InvalidAsset("name", "too long"),
        StoreUnavailable("the store is down"),
        TierFull("disk", 10, 5),
        SourceDown("no answer", 3.0),
        Refused(429, "full", 2.5),
        DeadlineExceeded("late", 2),
        NotFinite("the LoRA {assets} is wild", ("k",)),
        charged(ReplicaDied("gone"), 1.5),
        UnexpectedEngineError("odd"),
    ],
)
def test_an_error_is_the_same_after_encoding(error: Exception) -> None:
    again = copy(error)
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    assert vars(again) == vars(error)


def test_an_unknown_error_becomes_its_nearest_known_base() -> None:
    class ReplicaMelted(ReplicaDied):
        pass

    failure = Failure(("ReplicaMelted", "ReplicaDied", "ReplicaLost"), "it melted", ("x", 1))
    assert type(failure.error()) is ReplicaDied
    assert str(failure.error()) == "it melted"
    full = Failure(("TierCrowded", "TierFull", "TierError"), "crowded", ("disk", 1, 2)).error()
    assert (type(full), str(full)) == (TierError, "crowded")
    of_newer = Failure.of(ReplicaMelted("hot"))
    assert of_newer is not None
    assert of_newer.kinds[0] == "ReplicaDied"


def test_other_errors_are_not_messages() -> None:
    assert Failure.of(ValueError("a bug")) is None
