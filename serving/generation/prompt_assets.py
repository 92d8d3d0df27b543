"""The assets that a request's prompts and styles name: ``<lora:NAME:0.8>``, ``embedding:NAME``."""

from __future__ import annotations

from dataclasses import replace

from assets.selection import AssetSelection
from serving.generation.contract import GenerationParams
from serving.generation.prompts import ParsedPrompt, parse


def with_prompt_assets(
    selection: AssetSelection, params: GenerationParams
) -> tuple[AssetSelection, tuple[str, ...]]:
    """Add the assets that the prompts name; return warnings, too.

    The library resolves their names as it does those in fields, which win.
    """
    texts = [params.prompt, params.prompt_2]
    negatives = [params.negative_prompt, params.negative_prompt_2]
    positive = [parse(text, params.syntax) for text in texts if text is not None]
    positive += [parse(style.prompt) for style in params.styles]
    negative = [parse(text, params.syntax) for text in negatives if text is not None]
    negative += [parse(style.negative_prompt) for style in params.styles]
    warnings = dict.fromkeys(text for each in (*positive, *negative) for text in each.warnings)
    selection, more = _added(selection, positive, negative)
    return selection, (*warnings, *more)


def _added(
    selection: AssetSelection, positive: list[ParsedPrompt], negative: list[ParsedPrompt]
) -> tuple[AssetSelection, list[str]]:
    loras, text_weights = dict(selection.loras), dict(selection.lora_text_weights)
    inversions = dict(selection.inversions)
    warnings: list[str] = []
    for tag in dict.fromkeys(tag for each in positive for tag in each.loras):
        if tag.reference in loras:
            warnings.append(f"<lora:{tag.reference}> is left out: the request names it already")
            continue
        loras[tag.reference] = tag.weight
        if tag.text_weight != tag.weight:
            text_weights[tag.reference] = tag.text_weight
    if any(each.loras for each in negative):
        warnings.append("a LoRA in a negative prompt has no effect")
    for reference in dict.fromkeys(
        name for each in (*positive, *negative) for name in each.inversions
    ):
        word = inversions.setdefault(reference, reference)
        if word != reference:
            warnings.append(
                f"embedding:{reference} is text: the request gives it the word {word!r}"
            )
    changed = replace(selection, loras=loras, lora_text_weights=text_weights, inversions=inversions)
    return changed, warnings
