"""How much of an uploaded file is used, in words, by the report of its inspection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assets.asset import Asset, AssetKind

_SHOWN = 3
_SHOWN_CHARS = 100


def used_share(kind: AssetKind, report: Mapping[str, Any]) -> tuple[int, int, str]:
    """How many parts of the file are used, of how many, and what they are."""
    matched = int(report.get("matched", 0))
    if kind == "lora":
        return matched, int(report.get("modules", matched)), "modules"
    return matched, int(report.get("tensors_for_the_model", matched)), "tensors"


def shortfalls(kind: AssetKind, report: Mapping[str, Any]) -> tuple[str, ...]:
    """What an owner ought to know of a file that is usable: a sentence each."""
    found: list[str] = []
    used, of, what = used_share(kind, report)
    if used < of:
        names = [str(name)[:_SHOWN_CHARS] for name in report.get("unmatched", ())[:_SHOWN]]
        some = f"; not used, for example: {', '.join(map(repr, names))}" if names else ""
        found.append(f"{used} of its {of} {what} are used ({_percent(used, of)}){some}")
    if from_base := report.get("from_base"):
        found.append(f"it brings no {', '.join(from_base)}: the base model's is used")
    found += [str(warning)[:300] for warning in report.get("warnings", ())]
    predicts = report.get("prediction_type", {})
    if others := predicts.get("contradicted_by"):
        says = ", ".join(map(str, others))
        found.append(f"it is read as {predicts['value']} ({predicts['source']}); {says} disagrees")
    return tuple(found)


def coverage_warning(asset: Asset, reference: str) -> str | None:
    """For every answer that it was used in; says nothing that is its owner's alone."""
    used, of, what = used_share(asset.kind, asset.report)
    if used >= of:
        return None
    return f"{reference!r}: {used} of its {of} {what} are used ({_percent(used, of)})"


def _percent(used: int, of: int) -> str:
    """Never 0 % or 100 % of what is used in part."""
    return f"{min(99, max(1, round(100 * used / of)))} %" if used else "0 %"
