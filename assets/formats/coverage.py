"""Describe how much of an uploaded file is used, from its inspection report."""

from __future__ import annotations

from assets.asset import Asset, AssetKind
from assets.kinds import KINDS
from assets.report import Report

_SHOWN = 3
_SHOWN_CHARS = 100


def used_share(kind: AssetKind, report: Report) -> tuple[int, int, str]:
    """Return (used, total, "modules" or "tensors")."""
    traits = KINDS[kind]
    matched = report.get("matched", 0)
    return matched, report.get(traits.total, matched), traits.counted


def owner_warnings(kind: AssetKind, report: Report) -> tuple[str, ...]:
    """Return the owner's warnings about a usable file."""
    warnings: list[str] = []
    used, total, parts = used_share(kind, report)
    if used < total:
        names = [str(name)[:_SHOWN_CHARS] for name in report.get("unmatched", ())[:_SHOWN]]
        examples = f"; not used, for example: {', '.join(map(repr, names))}" if names else ""
        warnings.append(
            f"{used} of its {total} {parts} are used ({_percent(used, total)}){examples}"
        )
    if from_base := report.get("from_base"):
        warnings.append(f"it contains no {', '.join(from_base)}: the base model's is used")
    warnings += [str(warning)[:300] for warning in report.get("warnings", ())]
    prediction = report.get("prediction_type")
    if prediction and (contradictions := prediction.get("contradicted_by")):
        warnings.append(
            f"its prediction type is {prediction['value']} ({prediction['source']}); "
            f"contradicted by {', '.join(map(str, contradictions))}"
        )
    return tuple(warnings)


def coverage_warning(asset: Asset, reference: str) -> str | None:
    """Return the warning for every response that uses the asset; no private data."""
    used, total, parts = used_share(asset.kind, asset.report)
    if used >= total:
        return None
    return f"{reference!r}: {used} of its {total} {parts} are used ({_percent(used, total)})"


def _percent(used: int, total: int) -> str:
    """1–99 % when only part is used."""
    return f"{min(99, max(1, round(100 * used / total)))} %" if used else "0 %"
