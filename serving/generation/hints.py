"""Application of assets' hints where a request is silent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, structs

from assets.hints import Hints, HintValue
from assets.prediction import Prediction
from serving.errors import InvalidRequest
from serving.generation.contract import AppliedHint, GenerationRequest
from serving.generation.prompts import parse
from serving.generation.samplers import (
    SAMPLERS,
    SCHEDULES,
    Sampler,
    Schedule,
    evaluations,
    refusal,
)
from serving.generation.sizes import ImageSizes
from serving.generation.styles import PLACE, Style

#: Fields of a request that hints may fill, together: a schedule belongs to its sampler.
HINTED: tuple[tuple[str, ...], ...] = (
    ("sampler", "schedule"), ("steps",), ("cfg_scale",), ("clip_skip",), ("width", "height"),
)  # fmt: skip

_SIZE = ("width", "height")


class Hinted(Struct, frozen=True):
    """A request with its hints applied."""

    request: GenerationRequest
    applied: tuple[AppliedHint, ...] = ()
    warnings: tuple[str, ...] = ()


class Advice(NamedTuple):
    """An asset's hints. ``is_foreign``: of another tenant, which must not make a request dearer."""

    reference: str
    hints: Hints
    is_foreign: bool = False


def with_hints(
    request: GenerationRequest,
    advice: Sequence[Advice],
    sizes: ImageSizes,
    prediction: Prediction = "epsilon",
) -> Hinted:
    """Fill what the request leaves to its assets; the first asset with advice on a field wins.

    Prompt templates apply unless the prompt has their words already.
    """
    silent = set(request.defaulted)
    applied: list[AppliedHint] = []
    warnings: list[str] = []
    for reference, hints, is_foreign in advice:
        values = hints.to_json()
        for group in HINTED:
            given = {name: values[name] for name in group if name in values}
            if not given or not silent.issuperset(group):
                continue
            filled, reason = request, _unusable(given, prediction)
            if reason is None:
                filled = _filled(request, given)
                reason = _misfit(filled, sizes)
            if reason is None and is_foreign and _cost(filled, sizes) > _cost(request, sizes):
                reason = f"another tenant's asset makes no request dearer ({', '.join(given)})"
            if reason is not None:
                warnings.append(f"a hint of {reference!r} is left out: {reason}")
                continue
            silent -= set(group)
            request = filled
            applied += [AppliedHint(name, value, reference) for name, value in given.items()]
        if "prompt" in silent and (hints.prompt or hints.negative_prompt):
            if reason := _unreadable(hints):
                warnings.append(f"a hint of {reference!r} is left out: {reason}")
                continue
            request, added = _with_template(request, reference, hints)
            applied += added
    return Hinted(request, tuple(applied), tuple(warnings))


def _unusable(given: dict[str, HintValue], prediction: Prediction) -> str | None:
    """Why this release cannot use it."""
    sampler: Sampler | None = None
    if "sampler" in given:
        sampler = next((known for known in SAMPLERS if known == given["sampler"]), None)
        if sampler is None:
            return f"unknown sampler {given['sampler']!r}"
    schedule: Schedule | None = None
    if "schedule" in given:
        schedule = next((known for known in SCHEDULES if known == given["schedule"]), None)
        if schedule is None:
            return f"unknown schedule {given['schedule']!r}"
    return refusal(sampler or "DDIM", schedule, prediction)


def _unreadable(hints: Hints) -> str | None:
    """Why a template cannot be applied: assets were read from the prompts before."""
    for text in (hints.prompt, hints.negative_prompt):
        parsed = parse((text or "").replace(PLACE, ""))
        if parsed.loras or parsed.inversions:
            return "its template names other assets"
        if parsed.warnings:
            return parsed.warnings[0]
    return None


def _misfit(request: GenerationRequest, sizes: ImageSizes) -> str | None:
    try:
        sizes.size(request.width, request.height)
    except InvalidRequest as error:
        return error.message
    return None


def _cost(request: GenerationRequest, sizes: ImageSizes) -> float:
    size = sizes.size(request.width, request.height)
    return evaluations(request.params.sampler, request.params.steps) * size.width * size.height


def _filled(request: GenerationRequest, given: dict[str, HintValue]) -> GenerationRequest:
    own: dict[str, Any] = {name: given[name] for name in _SIZE if name in given}
    params: dict[str, Any] = {name: given[name] for name in given if name not in _SIZE}
    return structs.replace(request, params=structs.replace(request.params, **params), **own)


def _with_template(
    request: GenerationRequest, reference: str, hints: Hints
) -> tuple[GenerationRequest, list[AppliedHint]]:
    """Add the asset's templates as a style of its name."""
    params = request.params
    prompt = hints.prompt or PLACE
    negative = hints.negative_prompt or ""
    if _has_words(params.prompt, prompt):
        prompt = PLACE
    if params.negative_prompt is not None:
        negative = ""
    if prompt == PLACE and not negative:
        return request, []
    style = Style(reference, prompt, negative)
    params = structs.replace(params, styles=(*params.styles, style))
    added = [("prompt", prompt)] if prompt != PLACE else []
    added += [("negative_prompt", negative)] if negative else []
    applied = [AppliedHint(name, text, reference) for name, text in added]
    return structs.replace(request, params=params), applied


def _has_words(prompt: str, template: str) -> bool:
    words = [part.strip(" ,").casefold() for part in template.split(PLACE)]
    return all(part in prompt.casefold() for part in words if part)


def defaulted(given: Collection[str]) -> tuple[str, ...]:
    """Return what hints may fill in a request that has the fields ``given``."""
    fields = [name for group in HINTED for name in group]
    return (*(name for name in fields if name not in given), "prompt")
