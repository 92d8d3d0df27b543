"""Resolution of asset references to a recipe: once per request, at admission, after ``may()``.

A reference is an asset id, an own name, or ``owner:name`` of a public or shared asset. ``name@2``
is a version; the default is the newest ready one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assets.access import Verb, may, require
from assets.asset import COMMONS, Asset, AssetKind
from assets.errors import AssetNotFound, AssetNotReady, InvalidAsset
from assets.formats.coverage import coverage_warning
from assets.ids import is_asset_id
from assets.library.records import AssetRecords
from assets.library.validation import normal_name
from assets.principal import Principal
from assets.recipe import InversionUse, LoraUse, Recipe
from assets.selection import AssetSelection

#: The default checkpoint, in ``commons``.
BASE_NAME = "base"
MAX_LORAS = 32
MAX_INVERSIONS = 32
#: Of a trigger word.
MAX_WORD_CHARS = 128
MAX_LORA_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe, its references by content key, and its assets.

    ``checkpoint`` is the request's, or the base; ``assets``, by reference, are the others, too;
    ``warnings`` are for the response.
    """

    recipe: Recipe
    names: Mapping[str, str]
    checkpoint: Asset
    assets: Mapping[str, Asset] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def find(
    records: AssetRecords, principal: Principal, reference: str, verb: Verb, now_s: float
) -> Asset:
    """Return the live asset that ``reference`` means for ``principal``.

    Raises:
        AssetNotFound: unknown, deleted, expired or not allowed: undistinguished.
        Forbidden: the role does not allow the verb.
    """
    require(principal, verb)
    asset = _lookup(records, principal, reference)
    if asset is None or not may(principal, verb, asset):
        raise AssetNotFound(reference)
    if asset.expires_at_s is not None and asset.expires_at_s <= now_s and verb != "restore":
        raise AssetNotFound(reference)
    return asset


def _lookup(records: AssetRecords, principal: Principal, reference: str) -> Asset | None:
    if is_asset_id(reference):
        return records.get(reference)
    owner, colon, versioned_name = normal_name(reference).rpartition(":")
    name, at, number = versioned_name.partition("@")
    version = None
    if at:
        if not (number.isascii() and number.isdigit() and len(number) < 9):
            return None
        version = int(number)
    if principal.role == "anonymous":
        public_owner = owner if colon and owner != "octoai" else COMMONS
        return records.find_foreign(public_owner, name, version)
    member = None if principal.role == "owner" else principal.member_id
    if not colon:
        # Own names win; older applications omit public owners.
        own = records.find(principal.tenant_id, name, version, member)
        return own or records.find_foreign(COMMONS, name, version)
    if owner == "octoai":
        owner = COMMONS
    if owner == principal.tenant_name:
        return records.find(principal.tenant_id, name, version, member)
    return records.find_foreign(owner, name, version, reader=principal.tenant_name)


def find_base(records: AssetRecords) -> Asset:
    """Return the default checkpoint.

    Raises:
        AssetNotReady: no base model is imported.
    """
    base = records.find_foreign(COMMONS, BASE_NAME)
    if base is None or base.status != "ready":
        raise AssetNotReady(f"{COMMONS}:{BASE_NAME}", "missing", "the base model is not imported")
    return base


def resolve(
    records: AssetRecords,
    principal: Principal,
    selection: AssetSelection,
    now_s: float,
    base: Asset,
) -> Resolved:
    """Resolve a selection to a recipe of content keys.

    Raises:
        AssetNotFound, AssetNotReady: names the reference.
        InvalidAsset: a kind, number, weight or trigger word is invalid.
    """
    require(principal, "use")
    names: dict[str, str] = {}
    assets: dict[str, Asset] = {}
    warnings: list[str] = []

    def usable(reference: str, kind: AssetKind, field_name: str) -> Asset:
        asset = find(records, principal, reference, "use", now_s)
        if asset.kind != kind:
            raise InvalidAsset(field_name, f"{reference!r} is a {asset.kind}, not a {kind}")
        if asset.status != "ready":
            raise AssetNotReady(reference, asset.status, asset.status_details)
        if asset.report.get("fits") != base.report.get("fits"):
            raise AssetNotReady(
                reference, "unusable", "it was ingested for another base model; upload it again"
            )
        for blob in asset.parts.values():
            names.setdefault(blob.key, reference)
        assets[reference] = asset
        if warning := coverage_warning(asset, reference):
            warnings.append(warning)
        return asset

    if len(selection.loras) > MAX_LORAS:
        raise InvalidAsset(
            "loras", f"{len(selection.loras)} LoRAs; at most {MAX_LORAS} are accepted"
        )
    if len(selection.inversions) > MAX_INVERSIONS:
        number = f"{len(selection.inversions)} inversions"
        raise InvalidAsset("textual_inversions", f"{number}; at most {MAX_INVERSIONS} are accepted")
    parts, model = dict(base.parts), base
    for blob in base.parts.values():
        names[blob.key] = BASE_NAME
    if selection.checkpoint is not None:
        model = usable(selection.checkpoint, "checkpoint", "checkpoint")
        parts.update(model.parts)
    if selection.vae is not None:
        parts.update(usable(selection.vae, "vae", "vae").parts)

    weights: dict[str, LoraUse] = {}
    for reference, weight in selection.loras.items():
        text_weight = selection.lora_text_weights.get(reference, weight)
        for value in (weight, text_weight):
            if not -MAX_LORA_WEIGHT <= value <= MAX_LORA_WEIGHT:
                limit = f"between {-MAX_LORA_WEIGHT} and {MAX_LORA_WEIGHT}"
                raise InvalidAsset("loras", f"weight {value} of {reference!r} must be {limit}")
        blob = usable(reference, "lora", "loras").parts["lora"]
        if blob.key in weights:
            raise InvalidAsset("loras", f"{reference!r} is named twice (by two of its names)")
        weights[blob.key] = LoraUse(blob, float(weight), float(text_weight))

    inversions = []
    for reference, token in selection.inversions.items():
        asset = usable(reference, "textual_inversion", "textual_inversions")
        word = token.strip() or (asset.trigger_words[0] if asset.trigger_words else "")
        if not word:
            raise InvalidAsset("textual_inversions", f"{reference!r} needs a trigger word")
        if len(word) > MAX_WORD_CHARS:
            raise InvalidAsset(
                "textual_inversions",
                f"the trigger word of {reference!r} has {len(word)} characters; "
                f"at most {MAX_WORD_CHARS} are accepted",
            )
        inversions.append(InversionUse(asset.parts["textual_inversion"], word))
    if len({use.token for use in inversions}) != len(inversions):
        raise InvalidAsset("textual_inversions", "two inversions have the same trigger word")

    recipe = Recipe(
        unet=parts["unet"],
        text_encoder=parts["text_encoder"],
        text_encoder_2=parts["text_encoder_2"],
        vae=parts["vae"],
        loras=tuple(weights.values()),
        inversions=tuple(inversions),
    )
    return Resolved(recipe, names, model, assets, tuple(warnings))
