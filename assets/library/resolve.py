"""From what a request names to a recipe: once, at admission, after ``may()`` has answered.

A reference is an id, a name of one's own, or ``owner:name`` of a public or shared asset; a name
may say which version, ``name@2``, and otherwise means the newest that is ready.
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

#: The name, among the commons, of the checkpoint that a request without one is drawn with.
BASE_NAME = "base"
MAX_LORAS = 32
MAX_INVERSIONS = 32
#: Of a word that stands for an inversion in a prompt.
MAX_WORD_CHARS = 128
MAX_LORA_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class AssetSelection:
    """The assets a request names."""

    checkpoint: str | None = None
    vae: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    inversions: Mapping[str, str] = field(default_factory=dict)
    #: Of LoRAs whose weight on the text encoders is another than on the UNet.
    lora_text_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe, the name under which the request knew each content key, and the ids of the
    assets that it named."""

    recipe: Recipe
    names: Mapping[str, str]
    asset_ids: tuple[str, ...] = ()
    #: What the requester ought to know of the assets.
    warnings: tuple[str, ...] = ()


def find(
    records: AssetRecords, principal: Principal, reference: str, verb: Verb, now_s: float
) -> Asset:
    """The live asset that ``reference`` means to ``principal``.

    Raises:
        AssetNotFound: unknown, deleted, expired or not allowed: the caller cannot tell which.
        Forbidden: the key's role does not allow the verb.
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
    owner, colon, named = normal_name(reference).rpartition(":")
    name, at, number = named.partition("@")
    version = None
    if at:
        if not (number.isascii() and number.isdigit() and len(number) < 9):
            return None
        version = int(number)
    if principal.role == "anonymous":
        of = owner if colon and owner != "octoai" else COMMONS
        return records.find_foreign(of, name, version)
    member = None if principal.role == "owner" else principal.member_id
    if not colon:
        # One's own name wins; older applications name the public assets without their owner.
        own = records.find(principal.tenant_id, name, version, member)
        return own or records.find_foreign(COMMONS, name, version)
    if owner == "octoai":
        owner = COMMONS
    if owner == principal.tenant_name:
        return records.find(principal.tenant_id, name, version, member)
    return records.find_foreign(owner, name, version, reader=principal.tenant_name)


def find_base(records: AssetRecords) -> Asset:
    """The checkpoint that a request without one is drawn with.

    Raises:
        AssetNotReady: it is not imported yet.
    """
    base = records.find_foreign(COMMONS, BASE_NAME)
    if base is None or base.status != "ready":
        raise AssetNotReady(f"{COMMONS}:{BASE_NAME}", "missing", "the base model is not imported")
    return base


def resolve(
    records: AssetRecords, principal: Principal, wanted: AssetSelection, now_s: float, base: Asset
) -> Resolved:
    """Names to content.

    Raises:
        AssetNotFound, AssetNotReady: about the reference that is at fault.
        InvalidAsset: an asset of the wrong kind, or a weight that makes no sense.
    """
    require(principal, "use")
    names: dict[str, str] = {}
    asset_ids: dict[str, None] = {}
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
        asset_ids[asset.id] = None
        if warning := coverage_warning(asset, reference):
            warnings.append(warning)
        return asset

    if len(wanted.loras) > MAX_LORAS:
        raise InvalidAsset("loras", f"{len(wanted.loras)} LoRAs; at most {MAX_LORAS} are accepted")
    if len(wanted.inversions) > MAX_INVERSIONS:
        number = f"{len(wanted.inversions)} inversions"
        raise InvalidAsset("textual_inversions", f"{number}; at most {MAX_INVERSIONS} are accepted")
    parts = dict(base.parts)
    for blob in base.parts.values():
        names[blob.key] = BASE_NAME
    if wanted.checkpoint is not None:
        parts.update(usable(wanted.checkpoint, "checkpoint", "checkpoint").parts)
    if wanted.vae is not None:
        parts.update(usable(wanted.vae, "vae", "vae").parts)

    weights: dict[str, LoraUse] = {}
    for reference, weight in wanted.loras.items():
        text_weight = wanted.lora_text_weights.get(reference, weight)
        for given in (weight, text_weight):
            if not -MAX_LORA_WEIGHT <= given <= MAX_LORA_WEIGHT:
                limit = f"between {-MAX_LORA_WEIGHT} and {MAX_LORA_WEIGHT}"
                raise InvalidAsset("loras", f"weight {given} of {reference!r} must be {limit}")
        blob = usable(reference, "lora", "loras").parts["lora"]
        if blob.key in weights:
            raise InvalidAsset("loras", f"{reference!r} is named twice (by two of its names)")
        weights[blob.key] = LoraUse(blob, float(weight), float(text_weight))

    inversions = []
    for reference, token in wanted.inversions.items():
        asset = usable(reference, "textual_inversion", "textual_inversions")
        word = token.strip() or (asset.trigger_words[0] if asset.trigger_words else "")
        if not word:
            raise InvalidAsset("textual_inversions", f"{reference!r} needs a trigger word")
        if len(word) > MAX_WORD_CHARS:
            at_most = f"at most {MAX_WORD_CHARS} characters"
            raise InvalidAsset("textual_inversions", f"the word for {reference!r} has {at_most}")
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
    return Resolved(recipe, names, tuple(asset_ids), tuple(warnings))
