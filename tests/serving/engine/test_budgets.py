"""The tiers' memory budgets on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from assets.base_model.manifest import ModelManifest
from assets.content import MODEL_COMPONENTS, Blob
from assets.families.sdxl import SDXL_CONFIGS, schema_of
from serving.bootstrap.engine import budgets
from serving.settings import Settings

GIB = 1 << 30


@pytest.fixture(scope="module")
def sdxl() -> ModelManifest:
    parts = {c: Blob(c, "-", int(6.46 * GIB / 4)) for c in MODEL_COMPONENTS}
    return ModelManifest("base", "-", SDXL_CONFIGS, parts, schema_of(SDXL_CONFIGS))


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(data_dir=tmp_path, **changes)


def test_a_large_gpu_keeps_everything_on_the_device(
    sdxl: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget depends on free memory."""
    budget = {}
    for free in (78, 60):
        info = (free * GIB, 80 * GIB)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, info=info: info)
        budget[free] = budgets(settings(tmp_path), "cuda", sdxl)
    assert budget[78].device_bytes - budget[60].device_bytes == 18 * GIB
    assert 60 * GIB < budget[78].device_bytes < 70 * GIB
    assert budget[78].pristine_bytes is None


def test_a_small_gpu_keeps_pristine_weights_in_pinned_memory(
    sdxl: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many models as fit, one to three."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (23 * GIB, 24 * GIB))
    pages = {"SC_PAGE_SIZE": 4096}
    pristine_budgets = []
    for memory in (256, 16, 4):
        pages["SC_PHYS_PAGES"] = memory * GIB // 4096
        monkeypatch.setattr("os.sysconf", pages.__getitem__)
        budget = budgets(settings(tmp_path), "cuda", sdxl)
        assert budget.device_bytes < 12 * GIB
        assert budget.pristine_bytes is not None
        pristine_budgets.append(budget.pristine_bytes)
    large, medium, small = pristine_budgets
    assert large == 3 * small  # powers of two: more than the files' 6.5 GiB
    assert medium == 12 * GIB
    assert 9 * GIB < small < 10 * GIB


def test_explicit_settings_take_precedence(sdxl: ModelManifest, tmp_path: Path) -> None:
    explicit = settings(tmp_path, device_bytes=GIB, pristine="host", pristine_bytes=2 * GIB)
    budget = budgets(explicit, "cpu", sdxl)
    assert (budget.device_bytes, budget.pristine_bytes) == (GIB, 2 * GIB)
    small = replace(sdxl, parts={c: Blob(c, "-", 1) for c in MODEL_COMPONENTS})
    assert budgets(settings(tmp_path), "cpu", small).pristine_bytes is None
