"""Markdown tables of measured and predicted figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.document import Document

PREDICTIONS = Path(__file__).with_name("predictions.json")


def tables(files: Sequence[Path]) -> str:
    """Return a table per device; without files, the predictions."""
    predictions = json.loads(PREDICTIONS.read_text())
    documents = [json.loads(path.read_text()) for path in files]
    devices = list(dict.fromkeys(d["device"] for d in documents)) or [""]
    return "\n\n".join(
        _table(predictions, [d for d in documents if d["device"] == device], device)
        for device in devices
    )


def _table(predictions: Document, documents: Sequence[Document], device: str) -> str:
    title = device or "not measured yet"
    lines = [
        f"| {title} | predicted for an {predictions['device']} | goal | measured | |",
        "|---|---|---|---|---|",
    ]
    for figure in predictions["figures"]:
        scale = figure.get("scale", 1.0)
        unit = figure["unit"]
        goal = figure.get("goal")
        sign = "≥" if figure.get("more_is_better") else "≤"
        low, high = _number(figure["low"]), _number(figure["high"])
        expected = low if low == high else f"{low} to {high}"
        cells = [figure["name"], f"{expected} {unit}", "" if goal is None else f"{sign} {goal}"]
        measured = _measured(figure, documents)
        if measured is None:
            lines.append(f"| {' | '.join([*cells, '–', ''])} |")
            continue
        measured *= scale
        verdict = "" if figure["low"] <= measured <= figure["high"] else (
            "below" if measured < figure["low"] else "above"
        )  # fmt: skip
        if goal is not None:
            met = measured >= goal if figure.get("more_is_better") else measured <= goal
            verdict = f"{'met' if met else 'missed'}{', ' + verdict if verdict else ''}"
        lines.append(f"| {' | '.join([*cells, f'{_number(measured)} {unit}', verdict])} |")
    return "\n".join(line.replace(" |  |", " | |") for line in lines)


def _measured(figure: Document, documents: Sequence[Document]) -> float | None:
    """Prefers the figure's program, then the last document."""
    measured = None
    for document in documents:
        if figure.get("program", document["program"]) == document["program"]:
            value = document["stages"].get(figure["stage"], {}).get(figure["figure"])
            if isinstance(value, (int, float)):
                measured = float(value)
    return measured


def _number(value: float) -> str:
    return f"{value:.4g}"


def savings_table(document: Document) -> str:
    """Return the tables of ``savings``; ratios are without a saving ÷ with all."""
    stages = document["stages"]
    call, savings, overlap = stages["call"], stages["savings"], stages["overlap"]
    lines = [
        f"| {document['device']}; without ÷ with | same recipe | another LoRA each time |",
        "|---|---|---|",
    ]
    names = [n.removeprefix("same: ") for n in savings if n.startswith("same: ")]
    for name in names:
        same, lora = savings[f"same: {name}"], savings[f"lora: {name}"]
        lines.append(f"| {name} | {same:.2f} × | {lora:.2f} × |")
    lines += [
        "",
        "| a call of the UNet, the host's time | ms |",
        "|---|---|",
        f"| eager | {call['eager_ms']:.1f} |",
        f"| the stand-in of a replay | {call['replay_ms']:.1f} |",
        f"| a replay's copies alone | {call['copies_ms']:.3f} |",
        "",
        "| four images of 512 × 512 in one step each, PNG | ms |",
        "|---|---|",
        f"| encoded by the generating thread | {overlap['in_turn_ms']:.0f} |",
        f"| encoded beside it | {overlap['beside_ms']:.0f} |",
        f"| ratio | {overlap['in_turn_over_beside']:.2f} × |",
    ]
    return "\n".join(lines)
