"""Frozen names and values are unchanged."""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.freeze import FROZEN, differences, frozen
from tests.support.api_app import serving_api


def test_differences_are_reported() -> None:
    before = {"a": {"x": "1"}, "b": ["p", "q"]}
    assert list(differences(before, {"a": {"x": "1", "y": "2"}, "b": ["q", "r", "p"]})) == []
    assert list(differences(before, {"a": {"x": "2"}, "b": ["p"]})) == [
        " / a / x was '1' and is '2'",
        " / b / q is gone",
    ]
    assert list(differences(before, {"b": ["p", "q"]})) == [" / a is gone"]


async def test_frozen_names_and_values_are_unchanged(tmp_path: Path) -> None:
    async with serving_api(tmp_path) as made:
        now = frozen(made.app)
    before = json.loads(FROZEN.read_text())
    assert list(differences(before, json.loads(json.dumps(now)))) == []
    assert before.keys() == now.keys()
