"""A compiled UNet: no recipe makes it compile again, and a second start compiles nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assets.recipe import LoraUse, Recipe
from serving.drawing import DrawRequest
from serving.engine.compiled import compilations
from serving.engine.options import EngineOptions

#: Runs in a process of its own: what torch compiles and counts belongs to a process.
_START = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from serving.engine.compiled import compilations, keep_artifacts
from serving.engine.engine import Engine
from serving.engine.options import EngineOptions
from assets.model import load_manifest
from assets.store import FsspecStore
from orchestrator.file_tier import FileTier
from orchestrator.download import StoreSource
from orchestrator.provision import Provisioner

folder = Path(sys.argv[1])
keep_artifacts(folder / "compiled")
torch.set_num_threads(2)
store = FsspecStore(f"file://{sys.argv[2]}")
tiers = [FileTier(name, folder / name, 1 << 30) for name in ("disk", "host")]
manifest = load_manifest(store, "base")
options = EngineOptions(compile="regional")
engine = Engine(manifest, Provisioner(StoreSource(store), *tiers), options=options)
engine.warm_up([(64, 64)])
print(json.dumps(dict(compilations())))
"""


def test_a_hundred_mixed_recipes_compile_nothing(bench: Any, samples: dict[str, Any]) -> None:
    """Of other ranks, reaches and kinds, text encoders included, on other checkpoints; and what
    is drawn is what the plain engine draws. Dynamo's guards are the same for every backend;
    this one compiles quickly."""
    from serving.commons.catalogue import weights_file

    options = EngineOptions(compile="regional", compile_backend="aot_eager")
    engine, plain = bench.engine(options=options), bench.engine()
    engine.warm_up([(64, 64)])
    for compiled in (engine.unet.compiled, engine._decoder):
        compiled.forbid_fallbacks()
    graphs = compilations()["graphs"]
    assert graphs > 0
    uses = [samples[name].parts["lora"] for name in ("lora_all", "lora_cross", "lora_alpha")]
    uses += [bench.ingest(weights_file(n), "lora").parts["lora"] for n in ("outline", "dots")]
    other = samples["checkpoint"].parts["unet"]
    dice = random.Random(3)
    parts = dict(engine.base.components())
    for index in range(100):
        chosen = dice.sample(uses, dice.randint(0, 3))
        loras = tuple(LoraUse(blob, dice.uniform(-1, 1)) for blob in chosen)
        recipe = Recipe(**{**parts, "unet": dice.choice((parts["unet"], other))}, loras=loras)
        request = DrawRequest(
            "r", recipe, "a red star", 64, 64, (7,), steps=1,
            cfg_scale=dice.choice((1.0, 5.0)), encoding="png",
            sampler=dice.choice(("DDIM", "K_EULER")),
        )  # fmt: skip
        pictures = []
        for one in (engine, plain) if index % 25 == 0 else (engine,):
            prepared = one.prepare(recipe)
            pictures.append(one.draw(prepared, request).images)
            prepared.release()
        assert len(set(pictures)) == 1
    assert compilations()["graphs"] == graphs


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's CPU backend needs a C++ compiler")
def test_a_second_start_compiles_nothing(bench: Any, tmp_path: Path) -> None:
    store = bench.folder / "store"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
    counts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _START, str(tmp_path), str(store)],
            capture_output=True, text=True, check=False, env=environment, timeout=280,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        counts.append(json.loads(done.stdout.splitlines()[-1]))
    assert counts[0]["compiled"] > 0, counts
    assert counts[1]["compiled"] == 0
    assert counts[1]["graphs"] == counts[0]["graphs"]
    assert counts[1]["taken"] > 0
    assert any((tmp_path / "compiled").rglob("*.so"))
