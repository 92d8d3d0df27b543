"""Messages that earlier versions sent are read as they were meant, and those of a newer one too."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from serving.generation.events import decode
from tests.golden.messages import RECORDED, samples
from tests.support.messages import EVENTS

KNOWN = json.loads(RECORDED.read_text())


def test_every_kind_is_recorded() -> None:
    assert KNOWN["messages"].keys() == samples().keys(), "run python -m tests.golden.messages"
    assert KNOWN["newer"].keys() == {*samples(), "a_new_event"}


@pytest.mark.parametrize("version", ["messages", "newer"])
@pytest.mark.parametrize("sample", samples().values(), ids=lambda sample: type(sample).__name__)
def test_a_recorded_message_is_read_as_it_was_meant(version: str, sample: Any) -> None:
    data = base64.b64decode(KNOWN[version][type(sample).__name__])
    assert msgspec.msgpack.decode(data, type=type(sample)) == sample
    if sample in EVENTS:
        assert decode(data) == sample


def test_an_event_of_a_newer_version_is_skipped() -> None:
    assert decode(base64.b64decode(KNOWN["newer"]["a_new_event"])) is None
