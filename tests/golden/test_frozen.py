"""What outlives a process is called what it was called, and has the value that it had."""

from __future__ import annotations

import json
from pathlib import Path

from tests.api_app import serving_api
from tests.golden.freeze import FROZEN, differences, frozen


def test_a_difference_is_seen() -> None:
    before = {"a": {"x": "1"}, "b": ["p", "q"]}
    assert list(differences(before, {"a": {"x": "1", "y": "2"}, "b": ["q", "r", "p"]})) == []
    assert list(differences(before, {"a": {"x": "2"}, "b": ["p"]})) == [
        " / a / x was '1' and is '2'",
        " / b / q is gone",
    ]
    assert list(differences(before, {"b": ["p", "q"]})) == [" / a is gone"]


async def test_nothing_that_is_frozen_has_changed(tmp_path: Path) -> None:
    async with serving_api(tmp_path) as made:
        now = frozen(made.app)
    before = json.loads(FROZEN.read_text())
    assert list(differences(before, json.loads(json.dumps(now)))) == []
    assert before.keys() == now.keys()
