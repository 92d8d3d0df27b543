"""diffusers folders: sharded weights and configurations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.base_model.import_model import import_model
from assets.errors import IngestRejected
from assets.families.sdxl import schema_of
from assets.formats.pack import pack_folder
from assets.formats.tensors import TensorFile
from assets.ingest.convert import OwnerDeclaration, ingest_file
from assets.storage.object_store import FsspecStore
from serving.miniature.model import MINIATURE_CONFIGS

STEM = "diffusion_pytorch_model"


@pytest.fixture
def folder(miniature: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "model"
    shutil.copytree(miniature, copied)
    return copied


def shard(folder: Path, variant: str = "", count: int = 3) -> Path:
    """Shard the UNet, named as by ``save_pretrained``; return the index."""
    whole = folder / "unet" / f"{STEM}.safetensors"
    tensors = load_file(whole)
    weight_map: dict[str, str] = {}
    for number in range(count):
        names = sorted(tensors)[number::count]
        file = f"{STEM}{variant}-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, whole.with_name(file))
        weight_map |= dict.fromkeys(names, file)
    whole.unlink()
    index = whole.with_name(f"{STEM}.safetensors.index{variant}.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_through_the_index(
    folder: Path, miniature: Path, tmp_path: Path, variant: str
) -> None:
    whole = import_model(FsspecStore(f"file://{tmp_path}/store"), miniature, "whole")
    pack_folder(miniature, tmp_path / "whole.safetensors")
    shard(folder, variant)
    pieces = import_model(FsspecStore(f"file://{tmp_path}/store"), folder, "pieces")
    assert pieces.parts == whole.parts
    pack_folder(folder, tmp_path / "pieces.safetensors")
    assert (tmp_path / "pieces.safetensors").read_bytes() == (
        tmp_path / "whole.safetensors"
    ).read_bytes()


Damage = Callable[[Path, dict[str, Any]], None]


def _omit(index: Path, document: dict[str, Any]) -> None:
    del document["weight_map"]["conv_in.weight"]


def _misassign(index: Path, document: dict[str, Any]) -> None:
    others = set(document["weight_map"].values()) - {document["weight_map"]["conv_in.weight"]}
    document["weight_map"]["conv_in.weight"] = sorted(others)[0]


def _delete_file(index: Path, document: dict[str, Any]) -> None:
    (index.parent / document["weight_map"]["conv_in.weight"]).unlink()


def _leave_folder(index: Path, document: dict[str, Any]) -> None:
    document["weight_map"]["conv_in.weight"] = "../vae/diffusion_pytorch_model.safetensors"


def _no_map(index: Path, document: dict[str, Any]) -> None:
    document["weight_map"] = ["conv_in.weight"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_omit, "does not list 'conv_in.weight'"),
        (_misassign, "does not list 'conv_in.weight'"),
        (_delete_file, "not in its folder"),
        (_leave_folder, "not in its folder"),
        (_no_map, "no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_its_files_is_refused(
    folder: Path, damage: Damage, reason: str
) -> None:
    index = shard(folder)
    document = json.loads(index.read_text())
    damage(index, document)
    index.write_text(json.dumps(document))
    with pytest.raises(IngestRejected, match=reason):
        pack_folder(folder, folder / "packed.safetensors")


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("vae/config.json", {"scaling_factor": 0.5}, "scaling_factor to 0.5"),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "hidden_act to 'gelu'"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim to 256"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDM"),
        ("scheduler/scheduler_config.json", {"beta_start": 0.1}, "beta_start 0.1"),
    ],
)
def test_unsupported_configurations_are_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(IngestRejected, match=reason):
        pack_folder(folder, tmp_path / "packed.safetensors")
    with pytest.raises(IngestRejected, match=reason):
        import_model(FsspecStore(f"file://{tmp_path}/store"), folder, "base")


def test_a_velocity_scheduler_is_kept_with_the_folder(folder: Path, tmp_path: Path) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    store = FsspecStore(f"file://{tmp_path}/store")
    plain = import_model(store, folder, "base")
    config.write_text(json.dumps(json.loads(config.read_text()) | velocity))
    served = import_model(store, folder, "base")
    assert served.predicts.value == "v_prediction_zero_snr"
    assert served.predicts.source == "scheduler_config.json"
    assert served.parts["unet"].key == plain.parts["unet"].key + "-vz"
    assert served.parts["vae"] == plain.parts["vae"]
    overruled = import_model(store, folder, "base", prediction="epsilon")
    assert overruled.parts == plain.parts
    packed = pack_folder(folder, tmp_path / "packed.safetensors")
    with TensorFile(packed) as file:
        assert json.loads(file.header.metadata["scheduler_config"])["rescale_betas_zero_snr"]


def test_the_owners_prediction_type_overrides_the_scheduler(folder: Path, tmp_path: Path) -> None:
    """The error's remedy works."""
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    target = tmp_path / "packed.safetensors"
    with pytest.raises(IngestRejected, match="set prediction_type on the asset"):
        pack_folder(folder, target)
    assert not target.exists()
    pack_folder(folder, target, prediction_is_declared=True)
    word = OwnerDeclaration(prediction="epsilon")
    (tmp_path / "scratch").mkdir()
    schema = schema_of(MINIATURE_CONFIGS)
    done = ingest_file(target, "checkpoint", schema, None, tmp_path / "scratch", word)
    assert done.report["prediction_type"] == {"value": "epsilon", "source": "owner"}


def test_pickled_weights_are_refused_with_a_remedy(folder: Path) -> None:
    file = folder / "unet" / f"{STEM}.safetensors"
    torch.save({}, file.with_name(f"{STEM}.bin"))
    file.unlink()
    with pytest.raises(IngestRejected, match="safe_serialization=True"):
        pack_folder(folder, folder / "packed.safetensors")
