"""The assets that an image's metadata names."""

from __future__ import annotations

from assets.asset import Asset
from assets.library.resolve import Resolved
from assets.principal import Principal
from assets.selection import AssetSelection
from serving.generation.contract import AssetMark, Provenance


def provenance_of(
    principal: Principal, selection: AssetSelection, resolved: Resolved
) -> Provenance:
    """Return names as the tenant can use them again, and hashes of uploaded files."""

    def mark(asset: Asset, weight: float = 1.0, text_weight: float | None = None) -> AssetMark:
        is_own = asset.tenant_id == principal.tenant_id
        # A first version needs no number where there is no other.
        version = asset.reference if asset.version > 1 else asset.name
        name = version if is_own else f"{asset.owner}:{version}"
        # The hash of a file that is shared for use alone would tell what it is.
        is_known = is_own or asset.is_public
        sha256 = str(asset.report.get("source_sha256", "")) if is_known else ""
        return AssetMark(name, sha256, weight, text_weight)

    assets = resolved.assets
    return Provenance(
        model=mark(resolved.checkpoint),
        vae=None if selection.vae is None else mark(assets[selection.vae]),
        loras=tuple(
            mark(assets[name], weight, selection.lora_text_weights.get(name))
            for name, weight in selection.loras.items()
        ),
        inversions=tuple(mark(assets[name]) for name in selection.inversions),
    )
