"""The soak's plot: memory, files, latencies and kills over time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.document import Document
from benchmarks.soak.resource_usage import PARTS, PLACES, REST


def plot(result: Document, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    samples = result["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    figure, panels = plt.subplots(
        4, 1, figsize=(11, 12), sharex=True, layout="constrained", height_ratios=(3, 2, 2, 3)
    )
    memory, spared, files, latency = panels
    parts = [*(part for _, part in PARTS), REST]
    stacked = [[sample["bytes"].get(part, 0) / 2**20 for sample in samples] for part in parts]
    memory.stackplot(minutes, stacked, labels=parts, alpha=0.8)
    memory.set(ylabel="anonymous memory, MiB")
    for role in ("gateway", "replica"):
        points = [(m, s["spared"][role]["bytes"]) for m, s in zip(minutes, samples, strict=True)
                 if role in s["spared"]]  # fmt: skip
        spared.plot([m for m, _ in points], [b / 2**20 for _, b in points], label=f"spared {role}")
    spared.set(ylabel="memory of one process, MiB")
    spared.set_ylim(bottom=0)
    for place in PLACES:
        files.plot(minutes, [sample["files"][place] for sample in samples], label=place)
    files.set(ylabel="files")
    files.set_ylim(bottom=0)
    requests = result["answers"]  # (start, duration) in seconds
    starts, durations = [a / 60 for a, _ in requests], [s for _, s in requests]
    latency.plot(starts, durations, ".", markersize=2, color="k")
    latency.set(ylabel="request latency, s", yscale="log", xlabel="minutes")
    marks = [m for m in (0.1, 0.3, 1, 3, 10, 30, 100) if m < 1.5 * max(durations)]
    latency.set_yticks(marks, [f"{mark:g}" for mark in marks])
    latency.minorticks_off()
    for kill in result["kills"]:
        for axes in panels:
            axes.axvline(kill["at_s"] / 60, color="crimson", linewidth=0.7, alpha=0.5)
        memory.annotate(
            kill["what"], (kill["at_s"] / 60, 1.0), xycoords=("data", "axes fraction"),
            rotation=60, fontsize=6, color="crimson",
        )  # fmt: skip
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not latency:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
