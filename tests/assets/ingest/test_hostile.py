"""Every hostile file is rejected in bounded time and memory.

Nothing is left behind or unpickled.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from assets.families.schema import ParameterSchema
from tests.assets.ingest.hostile import (
    Hostile,
    invalid_contents,
    malformed_headers,
    other_models,
    pickles,
)

MAX_S, MAX_BYTES = 20.0, 600 << 20

_unpickled: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def record_unpickling() -> None:
    """Record globals that this process unpickles."""

    def hook(event: str, arguments: Any) -> None:
        if event == "pickle.find_class" and _watching:
            _unpickled.append(f"{arguments[0]}.{arguments[1]}")

    sys.addaudithook(hook)


_watching: list[bool] = []


@pytest.fixture(scope="module")
def corpus(
    schema: ParameterSchema, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Hostile], Path]:
    canary = tmp_path_factory.mktemp("canary") / "fired"
    return [*malformed_headers(), *pickles(canary), *invalid_contents(schema)], canary


def names() -> list[str]:
    from assets.families.sdxl import schema_of
    from serving.miniature.model import MINIATURE_CONFIGS

    files = [
        *malformed_headers(),
        *pickles(Path("/nowhere")),
        *invalid_contents(schema_of(MINIATURE_CONFIGS)),
    ]
    return [hostile.name for hostile in files]


def left_behind(bench: Any) -> set[str]:
    folders = [bench.folder / name for name in ("scratch", "store")]
    return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Cost:
    """``more_bytes``: the larger growth of the sandbox's and this process's memory."""

    seconds: float
    more_bytes: int


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def ingest(bench: Any, hostile: Hostile, folder: Path) -> tuple[Any, Cost]:
    path = folder / "model.safetensors"
    hostile.write(path)
    before = left_behind(bench)
    resident, started = _resident_bytes(), time.monotonic()
    _watching.append(True)
    asset = bench.ingest(path, hostile.kind)
    _watching.clear()
    grown = max(_resident_bytes() - resident, bench.ingest_service._sandbox.last_cost.more_bytes)
    if hostile.reason:
        assert left_behind(bench) == before
    return asset, Cost(time.monotonic() - started, grown)


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Cost]]:
    costs: dict[str, Cost] = {}
    yield costs
    print(f"\n{len(costs)} hostile files; the slowest and the largest:")
    for by in ("seconds", "more_bytes"):
        for name, cost in sorted(costs.items(), key=lambda item: -getattr(item[1], by))[:3]:
            print(f"  {name}: {cost.seconds:.2f} s, {cost.more_bytes / 2**20:.0f} MiB more")


def check(hostile: Hostile, asset: Any, cost: Cost) -> None:
    if hostile.reason:
        assert asset.status == "rejected", asset
        assert re.search(hostile.reason, asset.status_details), asset.status_details
        assert asset.report["reasons"]
    else:
        assert asset.status == "ready", asset.status_details
        assert len(str(asset.report)) < 100_000
    assert not _unpickled
    assert cost.seconds < MAX_S, cost.seconds
    assert cost.more_bytes < MAX_BYTES, cost.more_bytes


@pytest.mark.parametrize("name", names())
def test_hostile(
    name: str, corpus: Any, bench: Any, tmp_path: Path, figures: dict[str, Cost]
) -> None:
    files, canary = corpus
    hostile = next(h for h in files if h.name == name)
    asset, cost = ingest(bench, hostile, tmp_path)
    figures[name] = cost
    check(hostile, asset, cost)
    assert not canary.exists()


def test_files_of_other_models_are_rejected(
    real_data: Path, bench: Any, tmp_path: Path, figures: dict[str, Cost]
) -> None:
    files = list(other_models(real_data))
    assert len(files) >= 6
    for hostile in files:
        asset, cost = ingest(bench, hostile, tmp_path)
        figures[hostile.name] = cost
        check(hostile, asset, cost)


def test_all_reasons_are_reported_at_once(
    bench: Any, tmp_path: Path, schema: ParameterSchema
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.support.samples import write_kohya_lora

    path = write_kohya_lora(tmp_path / "x.safetensors", schema, rank=2)
    tensors = load_file(path)
    ups = [name for name in tensors if name.endswith("lora_up.weight")]
    tensors[ups[0]] = torch.zeros(7, 2)
    tensors[ups[1]][0, 0] = float("nan")
    tensors[ups[2]][0, 0] = float("inf")
    save_file(tensors, path)
    asset = bench.ingest(path, "checkpoint")
    reasons = "\n".join(asset.report["reasons"])
    for part in ("declared as checkpoint", "the served model needs", ups[1], ups[2]):
        assert part in reasons, reasons


def test_the_inspection_report(bench: Any, samples: dict[str, Any]) -> None:
    report = samples["lora_all"].report
    assert report["kind"] == "lora"
    assert report["family"] == "SDXL"
    assert report["dtypes"] == ["F16"]
    assert report["matched"] == report["modules"]
    assert 0 < report["largest_change"] < 65504
    assert isinstance(report["training"], dict)
