"""A rollout's checks before it stops anything."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import ray

from serving.cluster import rollout
from serving.settings import Settings


def test_code_that_cannot_be_imported_restarts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an actor was looked up or killed")

    monkeypatch.setattr(rollout, "IMPORTED", ("serving.cluster.no_such_module",))
    monkeypatch.setattr(ray, "kill", fail)
    monkeypatch.setattr(ray, "get_actor", fail)
    with pytest.raises(rollout.NotRenewed, match=r"(?s)cannot be imported.*no_such_module"):
        rollout.renew(Settings(data_dir=tmp_path), print, Event())


def test_modules_of_the_import_check_exist() -> None:
    for name in rollout.IMPORTED:
        assert (Path(__file__).parents[3] / f"{name.replace('.', '/')}.py").exists()
