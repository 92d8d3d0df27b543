"""Resolution of names to a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from assets.errors import AssetNotFound, AssetNotReady, InvalidAsset
from assets.library.resolve import Resolved, find_base
from assets.library.resolve import resolve as resolve_at
from assets.principal import Principal
from assets.selection import AssetSelection

T1, T2 = Principal("t1", "t1"), Principal("t2", "t2")


def resolve(records: Any, principal: Principal, selection: AssetSelection) -> Resolved:
    return resolve_at(records, principal, selection, 0.0, find_base(records))


def test_every_form_of_a_reference_resolves_to_the_same_content(
    bench: Any, samples: dict[str, Any]
) -> None:
    lora = samples["lora_all"]
    recipes = {
        resolve(bench.records, T1, AssetSelection(loras={reference: 0.5})).recipe
        for reference in (lora.id, lora.name, f"t1:{lora.name}")
    }
    assert len(recipes) == 1
    assert recipes.pop().loras[0].weight == 0.5


def test_order_of_loras_does_not_matter(bench: Any, samples: dict[str, Any]) -> None:
    ids = [samples["lora_all"].id, samples["lora_cross"].id]
    forward = resolve(bench.records, T1, AssetSelection(loras={ids[0]: 1.0, ids[1]: 0.5})).recipe
    backward = resolve(bench.records, T1, AssetSelection(loras={ids[1]: 0.5, ids[0]: 1.0})).recipe
    assert forward == backward


def test_foreign_and_unknown_assets_raise_the_same_error(
    bench: Any, samples: dict[str, Any]
) -> None:
    lora = samples["lora_all"]
    unknown = lora.id[:-4] + "0000"
    for reference in (lora.id, unknown, lora.name, f"t1:{lora.name}", "octoai:nothing"):
        with pytest.raises(AssetNotFound) as caught:
            resolve(bench.records, T2, AssetSelection(loras={reference: 1.0}))
        assert str(caught.value) == str(AssetNotFound(reference))


def test_base_checkpoint_is_public_under_all_its_names(bench: Any) -> None:
    base = resolve(bench.records, T2, AssetSelection()).recipe
    for reference in ("commons:base", "octoai:base", "base"):
        assert resolve(bench.records, T2, AssetSelection(checkpoint=reference)).recipe == base


def test_checkpoint_replaces_only_its_own_components(bench: Any, samples: dict[str, Any]) -> None:
    base = resolve(bench.records, T1, AssetSelection()).recipe
    other = resolve(bench.records, T1, AssetSelection(checkpoint=samples["checkpoint"].id)).recipe
    assert other.unet != base.unet
    with_vae = AssetSelection(checkpoint=samples["checkpoint"].id)
    assert resolve(bench.records, T1, with_vae).recipe == other


def test_invalid_selections_are_refused(bench: Any, samples: dict[str, Any], tmp_path: Any) -> None:
    lora, inversion = samples["lora_all"], samples["inversion"]
    for selection, reason in (
        (AssetSelection(loras={inversion.id: 1.0}), "not a lora"),
        (AssetSelection(checkpoint=lora.id), "not a checkpoint"),
        (AssetSelection(loras={lora.id: 1.0, lora.name: 0.5}), "named twice"),
        (AssetSelection(loras={lora.id: float("nan")}), "must be"),
        (AssetSelection(loras={lora.id: 11.0}), "must be"),
        (AssetSelection(inversions={inversion.id: " "}), "trigger word"),
        (
            AssetSelection(inversions={inversion.id: "x", samples["inversion_long"].id: "x"}),
            "same trigger word",
        ),
    ):
        with pytest.raises(InvalidAsset, match=reason):
            resolve(bench.records, T1, selection)
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk")
    rejected = bench.ingest(junk, "lora")
    with pytest.raises(AssetNotReady, match="rejected"):
        resolve(bench.records, T1, AssetSelection(loras={rejected.id: 1.0}))


def test_asset_of_another_base_model_is_refused(bench: Any, samples: dict[str, Any]) -> None:
    lora = samples["lora_cross"]
    report = dict(lora.report)
    bench.records.update(lora.id, {"report": {**report, "fits": "another"}})
    try:
        with pytest.raises(AssetNotReady, match="another base model"):
            resolve(bench.records, T1, AssetSelection(loras={lora.id: 1.0}))
    finally:
        bench.records.update(lora.id, {"report": report})
    resolve(bench.records, T1, AssetSelection(loras={lora.id: 1.0}))
