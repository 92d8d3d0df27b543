"""Ingest: canonical forms of accepted files, and rejections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.base_model.import_model import import_model
from assets.content import MODEL_COMPONENTS, Component, content_key, tenant_salt
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.formats.lora import cover
from assets.formats.pack import pack_folder
from assets.formats.tensors import TensorFile
from assets.ingest.convert import ingest_file
from assets.storage.object_paths import blob_key
from assets.storage.object_store import FsspecStore, read_bytes
from serving.miniature.model import MINIATURE_CONFIGS, weights
from serving.miniature.single_file import write_single_file
from tests.support.samples import write_kohya_lora

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"


def ingest(path: Path, kind: str, schema: ParameterSchema, scratch: Path) -> Any:
    scratch.mkdir(exist_ok=True)
    return ingest_file(path, kind, schema, b"salt", scratch)  # type: ignore[arg-type]


def save(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


def lora_pair(
    schema: ParameterSchema, module: str, rank: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = schema.components["unet"][f"{module}.weight"]
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *([1] * (len(shape) - 2)), generator=generator)
    return down, up


@pytest.mark.parametrize(
    "spelling",
    [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight|down,up",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_{}.weight|down,up",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight|A,B",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight|down,up",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight|down,up",
        "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight|A,B",
    ],
)
def test_every_spelling_maps_to_the_same_parameter(
    tmp_path: Path, schema: ParameterSchema, spelling: str
) -> None:
    pattern, roles = spelling.split("|")
    first, second = roles.split(",")
    down, up = lora_pair(schema, Q)
    path = save(
        tmp_path / "x.safetensors", {pattern.format(first): down, pattern.format(second): up}
    )
    done = ingest(path, "lora", schema, tmp_path / "scratch")
    with TensorFile(done.files["lora"][1]) as file:
        assert torch.equal(file.read(f"unet/{Q}.weight.down"), down)
        assert torch.equal(file.read(f"unet/{Q}.weight.up"), up)
        assert file.read("scales").tolist() == [1.0]
    assert done.report["matched"] == 1


def test_alpha_from_kohya_tensors_and_diffusers_metadata(
    tmp_path: Path, schema: ParameterSchema
) -> None:
    down, up = lora_pair(schema, Q)
    kohya = "lora_unet_" + Q.replace(".", "_")
    tensors = {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up}
    path = save(tmp_path / "k.safetensors", {**tensors, f"{kohya}.alpha": torch.tensor(1.0)})
    done = ingest(path, "lora", schema, tmp_path / "k")
    with TensorFile(done.files["lora"][1]) as file:
        assert file.read("scales").tolist() == [0.25]
    metadata = {
        "lora_adapter_metadata": '{"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}}'
    }
    named = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    path = save(tmp_path / "d.safetensors", named, metadata)
    done = ingest(path, "lora", schema, tmp_path / "d")
    with TensorFile(done.files["lora"][1]) as file:
        assert file.read("scales").tolist() == [0.5]


def test_convolutions_are_flattened(tmp_path: Path, schema: ParameterSchema) -> None:
    down, up = lora_pair(schema, CONV)
    name = "lora_unet_" + CONV.replace(".", "_")
    path = save(
        tmp_path / "c.safetensors",
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up},
    )
    done = ingest(path, "lora", schema, tmp_path / "scratch")
    with TensorFile(done.files["lora"][1]) as file:
        assert torch.equal(file.read(f"unet/{CONV}.weight.down"), down.flatten(1))
        assert torch.equal(file.read(f"unet/{CONV}.weight.up"), up.flatten(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(tmp_path: Path, schema: ParameterSchema, bad: float) -> None:
    down, up = lora_pair(schema, Q)
    down[0, 0] = bad
    path = save(
        tmp_path / "n.safetensors",
        {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up},
    )
    with pytest.raises(IngestRejected, match="not finite"):
        ingest(path, "lora", schema, tmp_path / "scratch")


def test_reasons_of_refusal(tmp_path: Path, schema: ParameterSchema) -> None:
    down, up = lora_pair(schema, Q)
    cases = {
        "no up factor": {f"unet.{Q}.lora_A.weight": down},
        "the served model needs": {
            f"unet.{Q}.lora_A.weight": torch.zeros(4, 7),
            f"unet.{Q}.lora_B.weight": up,
        },
        "none of its 1 modules": {
            "unet.nowhere.lora_A.weight": down,
            "unet.nowhere.lora_B.weight": up,
        },
        "no hada_w1_b factor": {f"unet.{Q}.hada_w1_a": down},
        "OFT": {f"unet.{Q}.oft_blocks": down},
        "changed twice": {
            f"unet.{Q}.lora_A.weight": down,
            f"unet.{Q}.lora_B.weight": up,
            f"base_model.model.{Q}.lora_A.weight": down.clone(),
            f"base_model.model.{Q}.lora_B.weight": up.clone(),
        },
    }
    for number, (reason, tensors) in enumerate(cases.items()):
        path = save(tmp_path / f"{number}.safetensors", tensors)
        with pytest.raises(IngestRejected, match=reason):
            ingest(path, "lora", schema, tmp_path / "scratch")
    path = save(tmp_path / "declared.safetensors", {"clip_l": up, "clip_g": up.clone()})
    with pytest.raises(IngestRejected, match="declared as lora"):
        ingest(path, "lora", schema, tmp_path / "scratch")
    with pytest.raises(IngestRejected, match="width 32"):
        ingest(path, "textual_inversion", schema, tmp_path / "scratch")


def test_unmatched_keys_are_reported(tmp_path: Path, schema: ParameterSchema) -> None:
    down, up = lora_pair(schema, Q)
    listing = {
        f"unet.{Q}.lora_A.weight": tuple(down.shape),
        f"unet.{Q}.lora_B.weight": tuple(up.shape),
        "unet.elsewhere.lora_A.weight": (4, 4),
    }
    assert cover(listing, schema).report()["unmatched"] == ["unet.elsewhere"]


def test_a_single_file_converts_to_the_folders_tensors(
    bench: Any, samples: dict[str, Any], miniature: Path
) -> None:
    """The sample has the miniature's tensors, except the UNet."""
    parts = samples["checkpoint"].parts
    for component, file in (("text_encoder", "model"), ("text_encoder_2", "model"), ("vae", None)):
        stem = file or "diffusion_pytorch_model"
        folder = load_file(miniature / component / f"{stem}.safetensors")
        raw = read_bytes(bench.store, blob_key(parts[component]))
        path = bench.folder / f"check-{component}"
        path.write_bytes(raw)
        converted = load_file(path)
        assert converted.keys() == folder.keys()
        assert all(torch.equal(converted[name], folder[name]) for name in folder)


def test_a_rejected_upload_keeps_the_reasons_and_no_bytes(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "junk.safetensors"
    path.write_bytes(b"not a model at all")
    asset = bench.ingest(path, "lora")
    assert asset.status == "rejected"
    assert "not a safetensors file" in asset.status_details
    assert asset.report["reasons"]
    assert bench.store.size(f"uploads/{asset.id}") is None


def test_two_tenants_with_the_same_file_have_different_keys(
    bench: Any, schema: ParameterSchema, tmp_path: Path
) -> None:
    path = write_kohya_lora(tmp_path / "same.safetensors", schema, seed=99, only="attn2")
    first, second = bench.ingest(path, "lora", "t1"), bench.ingest(path, "lora", "t1")
    other = bench.ingest(path, "lora", "t2")
    assert first.parts["lora"] == second.parts["lora"]
    assert first.parts["lora"].key != other.parts["lora"].key
    assert first.parts["lora"].sha256 == other.parts["lora"].sha256


def test_keys_do_not_reveal_the_digest() -> None:
    salt, other = tenant_salt(b"secret", "t1"), tenant_salt(b"secret", "t2")
    keys = {
        content_key("ab", "lora", "m", salt),
        content_key("ab", "lora", "m", other),
        content_key("ab", "lora", "m", None),
        content_key("ab", "unet", "m", None),
        content_key("ab", "lora", "another model", None),
    }
    assert len(keys) == 5


@pytest.mark.parametrize(
    "metadata",
    ["[]", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": []}', "{" * 9, "1" * 5000],
)
def test_hostile_metadata_is_refused(
    tmp_path: Path, schema: ParameterSchema, metadata: str
) -> None:
    down, up = lora_pair(schema, Q)
    named = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    path = save(tmp_path / "m.safetensors", named, {"lora_adapter_metadata": metadata})
    if metadata == '{"unet.alpha_pattern": []}':  # empty: nothing to apply
        ingest(path, "lora", schema, tmp_path / "scratch")
        return
    with pytest.raises(IngestRejected, match="lora_adapter_metadata"):
        ingest(path, "lora", schema, tmp_path / "scratch")


def test_a_single_file_and_a_folder_import_as_the_same_base_model(
    bench: Any, miniature: Path, schema: ParameterSchema, tmp_path: Path
) -> None:
    """The same bytes, hence content keys."""

    tensors = {component: weights(component) for component in MODEL_COMPONENTS}

    def value(component: Component, name: str, _: Any) -> Any:
        return tensors[component][name]

    path = write_single_file(tmp_path / "base.safetensors", schema, value)
    store = FsspecStore(f"file://{tmp_path}/store")
    manifest = import_model(store, path, "base", single_file_configs=MINIATURE_CONFIGS)
    assert manifest.parts == bench.manifest.parts
    assert manifest.schema == bench.manifest.schema
    assert import_model(store, path, "base") == manifest  # imported before: nothing is read
    with pytest.raises(IngestRejected, match="the served model has"):
        import_model(store, path, "other")  # does not fit full-size SDXL


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    store = FsspecStore(f"file://{tmp_path}/store")
    (tmp_path / "unet").mkdir()
    with pytest.raises(IngestRejected, match=r"config\.json is missing"):
        import_model(store, tmp_path, "base")
    with pytest.raises(IngestRejected, match="there is no model"):
        import_model(store, tmp_path / "nowhere", "base")


@pytest.mark.parametrize("separator", ["/", "."])
def test_every_checkpoint_layout_gives_the_same_blobs(
    tmp_path: Path, schema: ParameterSchema, miniature: Path, separator: str
) -> None:
    """A single file, a packed diffusers folder, a bare UNet."""

    def parts(path: Path, scratch: str) -> Any:
        done = ingest(path, "checkpoint", schema, tmp_path / scratch)
        assert done.report["unmatched"] == []
        return {component: blob for component, (blob, _) in done.files.items()}

    tensors = {component: weights(component) for component in MODEL_COMPONENTS}
    single = write_single_file(
        tmp_path / "single.safetensors",
        schema,
        lambda component, name, _: tensors[component][name],
    )
    expected = parts(single, "single")
    assert expected.keys() == set(MODEL_COMPONENTS)
    assert parts(pack_folder(miniature, tmp_path / "packed.safetensors"), "packed") == expected
    # As in transformers >= 5.6.
    renamed = {
        f"{component}{separator}{name.removeprefix('text_model.')}": tensor
        for component, named in tensors.items()
        for name, tensor in named.items()
    }
    assert parts(save(tmp_path / "new.safetensors", renamed), "new") == expected
    alone = parts(save(tmp_path / "unet.safetensors", tensors["unet"]), "alone")
    assert alone == {"unet": expected["unet"]}


def test_a_folder_without_a_unet_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(IngestRejected, match="no unet"):
        pack_folder(tmp_path, tmp_path / "packed.safetensors")
    (tmp_path / "unet").mkdir()
    with pytest.raises(IngestRejected, match="pickled"):
        pack_folder(tmp_path, tmp_path / "packed.safetensors")
    assert not (tmp_path / "packed.safetensors").exists()


def test_every_inversion_layout_gives_the_same_blob(
    tmp_path: Path, schema: ParameterSchema
) -> None:
    first, second = (torch.randn(2, width) for width in schema.text_widths)

    def vectors(name: str, **tensors: torch.Tensor) -> Any:
        path = save(tmp_path / f"{name}.safetensors", tensors)
        done = ingest(path, "textual_inversion", schema, tmp_path / name)
        return done.files["textual_inversion"][0], done.report

    expected, report = vectors("a1111", clip_l=first, clip_g=second)
    assert report["encoders"] == ["text_encoder", "text_encoder_2"]
    assert vectors("diffusers", text_encoders_0=first, text_encoders_1=second)[0] == expected
    both = torch.cat([first, second], dim=1)
    assert vectors("whole", emb_params=both)[0] == expected
    assert vectors("word", **{"<my-word>": both})[0] == expected
    alone, report = vectors("second", emb_params=second)
    assert alone != expected
    assert report["encoders"] == ["text_encoder_2"]
    with pytest.raises(IngestRejected, match="clip_l and clip_g"):
        vectors("first", emb_params=first)
    with pytest.raises(IngestRejected, match="fit a prompt"):
        vectors("long", emb_params=torch.randn(76, both.shape[1]))
