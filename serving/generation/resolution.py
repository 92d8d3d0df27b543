"""Resolution at admission: from a request with names to a task that decides every pixel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import structs

from assets.asset import COMMONS, Asset
from assets.errors import InvalidAsset
from assets.ids import ulid
from assets.library.resolve import BASE_NAME, Resolved
from assets.principal import Principal
from assets.selection import AssetSelection
from serving.errors import InvalidRequest
from serving.generation.choices import of_image
from serving.generation.contract import AppliedHint, GenerationRequest, GenerationTask, Provenance
from serving.generation.hints import Advice, with_hints
from serving.generation.prompt_assets import with_prompt_assets
from serving.generation.provenance import provenance_of
from serving.generation.samplers import refusal
from serving.generation.sizes import MAX_WEBP_SIDE, ImageSizes, Size
from serving.generation.style_presets import presets
from serving.generation.styles import PLACE, Style

if TYPE_CHECKING:
    from assets.library.library import Library
    from serving.generation.pool_choice import PoolChoice


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A task, and what its receipt says of the resolution."""

    task: GenerationTask
    size: Size
    resolved: Resolved
    priority: int
    asset_ids: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    hints: tuple[AppliedHint, ...] = ()
    enable_safety: bool = False


class RequestResolver:
    def __init__(self, library: Library, sizes: ImageSizes, pools: PoolChoice) -> None:
        self._library = library
        self._sizes = sizes
        self._pools = pools

    async def resolve(self, principal: Principal, request: GenerationRequest) -> ResolvedRequest:
        """Resolve names, styles and hints.

        Raises:
            AssetError: a reference is invalid.
            InvalidRequest: a field is invalid.
        """
        limit = principal.plan.concurrent_pictures
        if limit is not None and len(request.seeds) > limit:
            raise InvalidRequest("num_images", f"your plan allows {limit} images at a time")
        pool = self._pools.choose(request.gpu, principal.gpu)
        own = await self._own_styles(principal, request.selection.styles)
        request = _with_styles(request, own)
        selection, warnings, resolved = await asyncio.to_thread(self._named, principal, request)
        prediction = resolved.recipe.prediction
        hinted = with_hints(request, _advice(principal, resolved), self._sizes, prediction)
        request = hinted.request
        params = request.params
        if reason := refusal(params.sampler, params.schedule, prediction):
            raise InvalidRequest("schedule", reason)
        size = self._sizes.size(request.width, request.height)
        if params.encoding == "webp" and max(size.width, size.height) > MAX_WEBP_SIDE:
            raise InvalidRequest(
                "image_encoding", f"a WebP has at most {MAX_WEBP_SIDE} pixels a side"
            )
        task = GenerationTask(
            id="req_" + ulid(),
            recipe=resolved.recipe,
            params=request.params,
            seeds=request.seeds,
            width=size.width,
            height=size.height,
            tenant_id=principal.tenant_id,
            pool=pool,
            provenance=self._provenance(principal, request, selection, resolved),
        )
        return ResolvedRequest(
            task,
            size,
            resolved,
            request.priority,
            tuple(asset.id for asset in (*resolved.assets.values(), *own.values())),
            (*resolved.warnings, *warnings, *hinted.warnings),
            hinted.applied,
            request.enable_safety,
        )

    def _named(
        self, principal: Principal, request: GenerationRequest
    ) -> tuple[AssetSelection, tuple[str, ...], Resolved]:
        selection, warnings = selection_of(request)
        return selection, warnings, self._library.resolve(principal, selection)

    def _provenance(
        self,
        principal: Principal,
        request: GenerationRequest,
        selection: AssetSelection,
        resolved: Resolved,
    ) -> Provenance | None:
        wanted = principal.image_metadata if request.metadata is None else request.metadata
        return provenance_of(principal, selection, resolved) if wanted else None

    async def _own_styles(self, principal: Principal, names: tuple[str, ...]) -> dict[str, Asset]:
        """Return the styles that are assets. A built-in style's name means that style."""
        own: dict[str, Asset] = {}
        for name in dict.fromkeys(name for name in names if name not in presets()):
            style = await asyncio.to_thread(self._library.usable, principal, name)
            if style.kind != "style":
                raise InvalidAsset("styles", f"{name!r} is a {style.kind}, not a style")
            own[name] = style
        return own


def selection_of(request: GenerationRequest) -> tuple[AssetSelection, tuple[str, ...]]:
    """Return the assets that fields and prompts name, and warnings.

    Raises:
        InvalidRequest: images of the request would name different ones.
    """
    images = dict.fromkeys(of_image(request.params, seed) for seed in request.seeds)
    found = [with_prompt_assets(request.selection, params) for params in images]
    if any(selection != found[0][0] for selection, _ in found):
        raise InvalidRequest(
            "prompt", "its choices name different assets for different images: name them outside"
        )
    warnings = dict.fromkeys(warning for _, told in found for warning in told)
    return found[0][0], tuple(warnings)


def _advice(principal: Principal, resolved: Resolved) -> Sequence[Advice]:
    """Return the hints of the request's assets, the checkpoint's last."""
    ours = (principal.tenant_id, COMMONS)
    checkpoint = resolved.checkpoint
    assets = {ref: a for ref, a in resolved.assets.items() if a is not checkpoint}
    named = (ref for ref, asset in resolved.assets.items() if asset is checkpoint)
    assets[next(named, BASE_NAME)] = checkpoint
    return [
        Advice(reference, asset.advice, asset.tenant_id not in ours)
        for reference, asset in assets.items()
    ]


def _with_styles(request: GenerationRequest, own: dict[str, Asset]) -> GenerationRequest:
    styles = []
    for name in request.selection.styles:
        if name in own:
            hints = own[name].advice
            texts = (hints.prompt or PLACE, hints.negative_prompt or "")
            styles.append(Style(name, *texts, own[name].version))
        else:
            styles.append(presets()[name])
    effective = tuple(style for style in styles if not style.is_empty)
    params = structs.replace(request.params, styles=effective)
    return structs.replace(request, params=params)
