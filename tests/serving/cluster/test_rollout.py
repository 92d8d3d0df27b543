"""What a renewal asks before it ends anything."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from serving.cluster import rollout as renewal
from serving.settings import Settings


def test_code_that_cannot_be_imported_renews_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise AssertionError("something was ended")

    monkeypatch.setattr(renewal, "IMPORTED", ("serving.cluster.no_such_room",))
    monkeypatch.setattr(renewal.ray, "kill", ended)
    monkeypatch.setattr(renewal.ray, "get_actor", ended)
    with pytest.raises(renewal.NotRenewed, match=r"(?s)cannot be imported.*no_such_room"):
        renewal.renew(Settings(data_dir=tmp_path), print, Event())


def test_what_a_renewal_imports_is_there() -> None:
    for name in renewal.IMPORTED:
        assert (Path(__file__).parents[3] / f"{name.replace('.', '/')}.py").exists()
