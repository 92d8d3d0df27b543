"""Guesses hints of models distilled for few steps, which file formats do not state.

SDXL-Lightning (arXiv:2402.13929), Hyper-SD (arXiv:2404.13686), LCM (arXiv:2310.04378), DMD2
(arXiv:2405.14867) and SDXL Turbo (arXiv:2311.17042): samplers, steps and guidance come from their
model cards. A name tells the method: the asset's, the imported file's, or one in its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from assets.asset import Asset, AssetKind
from assets.hints import Hints
from assets.report import Report

_STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")
#: Within a camel-case word.
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: Metadata that names a model.
_NAMING = ("modelspec.title", "ss_output_name", "ss_sd_model_name", "title", "name")
_OFF = 1.0


class _Family(NamedTuple):
    """``clear`` tells it alone; ``vague`` only with a number of steps, or of a checkpoint."""

    name: str
    clear: re.Pattern[str]
    vague: re.Pattern[str]
    hints: Hints


def _word(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])")


_FAMILIES = (
    _Family(
        "DMD2",
        _word("dmd2"),
        _word("dmd"),
        Hints(sampler="LCM", schedule="trailing", steps=4, cfg_scale=_OFF),
    ),
    _Family(
        "LCM",
        _word("lcm|latent[-_ ]?consistency"),
        _word("lcm"),
        Hints(sampler="LCM", steps=8, cfg_scale=_OFF),
    ),
    _Family(
        "Lightning",
        _word("(?:sd)?xl[-_ ]?lightning|lightning[-_ ]?(?:sd)?xl"),
        _word("lightning"),
        Hints(sampler="K_EULER", schedule="trailing", steps=4, cfg_scale=_OFF),
    ),
    _Family(
        "Hyper-SD",
        _word("hyper[-_ ]?sd(?:xl)?"),
        _word("hyper"),
        Hints(sampler="DDIM", schedule="trailing", steps=8, cfg_scale=_OFF),
    ),
    _Family(
        "Turbo",
        _word("sd(?:xl)?[-_ ]?turbo"),
        _word("turbo"),
        Hints(sampler="K_EULER_ANCESTRAL", schedule="trailing", steps=4, cfg_scale=_OFF),
    ),
)  # fmt: skip


def guess(asset: Asset, report: Report) -> Report:
    """Return the report's entries of guessed hints; none for most assets."""
    if asset.kind not in ("checkpoint", "lora"):
        return Report()
    for source, name in _names(asset, report):
        text = _HUMP.sub("-", name).casefold()
        steps = _STEPS.search(text)
        for family in _FAMILIES:
            if _tells(family, text, asset.kind, has_steps=steps is not None):
                hints = family.hints
                if steps and 0 < int(steps[1]) <= 16:
                    hints = replace(hints, steps=int(steps[1]))
                if re.search(r"cfg", text):  # distilled to be guided
                    hints = replace(hints, cfg_scale=5.0)
                evidence = f"{family.name}: {source} is {name[:100]!r}"
                return Report(hints={**hints.to_json()}, hints_evidence=evidence)
    return Report()


def _tells(family: _Family, text: str, kind: AssetKind, *, has_steps: bool) -> bool:
    if family.clear.search(text):
        return True
    return family.vague.search(text) is not None and (has_steps or kind == "checkpoint")


def _names(asset: Asset, report: Report) -> Iterator[tuple[str, str]]:
    yield "its name", asset.name
    if asset.source is not None:
        for imported in (asset.source.hf_repo, asset.source.url):
            if imported:
                yield "its source", imported.partition("?")[0]
    training = report.get("training", {})
    for key in _NAMING:
        if key in training:
            yield key, training[key]
