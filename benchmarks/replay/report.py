"""The saved results as the tables of docs/routing.md."""

from __future__ import annotations

from benchmarks.document import Document
from benchmarks.replay.figures import table, written


def report(result: Document) -> list[str]:
    """Return the Markdown tables."""
    rows = result["policies"]
    tables = [
        f"Offered load {load}:\n\n{table([row for row in rows if row['load'] == load])}"
        for load in dict.fromkeys(row["load"] for row in rows)
    ]
    return [
        *tables,
        _caches(result),
        _streams(result),
        _loud(result),
        _flood(result),
        _scale(result),
    ]


def _caches(result: Document) -> str:
    lines = ["| slots | Belady | LRU | ours | ours / Belady | ours / LRU |", "|" + "---|" * 6]
    lines += [
        f"| {row['slots']} | {row['belady']} | {row['lru']} | {row['ours']} "
        f"| {row['ours'] / row['belady']:.3f} | {row['ours'] / row['lru']:.3f} |"
        for row in result["caches"]
        if "stream" not in row
    ]
    return "\n".join(lines)


def _streams(result: Document) -> str:
    lines = [
        "| stream | slots | Belady | LRU | visits | ours | ours / LRU | ours / better "
        "| ours / Belady | LRU ruled | changes |",
        "|" + "---|" * 11,
    ]
    for row in result["caches"]:
        if "stream" in row:
            better = min(row["lru"], row["visits"])
            name = row["stream"] + (" (held out)" if row["held_out"] else "")
            lines.append(
                f"| {name} | {row['slots']} | {row['belady']} | {row['lru']} | {row['visits']} "
                f"| {row['ours']} | {row['ours'] / row['lru']:.3f} | {row['ours'] / better:.3f} "
                f"| {row['ours'] / row['belady']:.3f} | {row['recency_share']:.2f} "
                f"| {row['changes']} |"
            )
    return "\n".join(lines)


def _loud(result: Document) -> str:
    lines = [
        "| stream | policy | p95 alone, s | p95 beside it, s | ratio | slowdown p95 alone "
        "| beside it | requests | failed alone | failed beside it |",
        "|" + "---|" * 10,
    ]
    for row in result["neighbour"]["loud"]:
        name = row["stream"] + (" (held out)" if row["held_out"] else "")
        lines.append(
            f"| {name} | {row['policy']} | {written(row['victims_p95_alone_s'])} "
            f"| {written(row['victims_p95_beside_s'])} "
            f"| {'–' if row['ratio'] is None else written(row['ratio'], '{:.2f}')} "
            f"| {written(row['victims_slowdown_p95_alone'])} "
            f"| {written(row['victims_slowdown_p95_beside'])} "
            f"| {row['victims']} | {row['victims_failed_alone']} | {row['victims_failed_beside']} |"
        )
    return "\n".join(lines)


def _flood(result: Document) -> str:
    flood = result["neighbour"]["flood"]
    lines = ["| LoRA hits of the others | alone | beside the flood |", "|" + "---|" * 3]
    lines += [
        f"| {title} | {flood[f'{tier}_alone']:.3f} | {flood[f'{tier}_beside']:.3f} |"
        for tier, title in (("device", "on the device"), ("node", "in any tier of the node"))
    ]
    return "\n".join(lines)


def _scale(result: Document) -> str:
    lines = [
        "| policy | replicas | requests | seconds | µs a request | MiB at most |",
        "|" + "---|" * 6,
    ]
    lines += [
        f"| {row['policy']} | {row['replicas']} | {row['requests']} | {row['seconds']:.1f} "
        f"| {row['us_a_request']:.0f} | {row['peak_bytes'] >> 20} |"
        for row in result["scale"]
    ]
    return "\n".join(lines)
