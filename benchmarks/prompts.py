"""Encoding times of prompts of one, two and three chunks, interleaved, with the miniature."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.document import Document
from benchmarks.miniature.evaluate import Studio
from serving.engine.text import Wording
from serving.generation.prompts import parse

RESULT = Path(__file__).parent / "results" / "prompts.json"
CHUNKS = (1, 2, 3)
ROUNDS = 40


def measure(studio: Studio, rounds: int) -> Document:
    text = studio.engine.prompts.text
    wordings: dict[int, Wording] = {}
    for count in CHUNKS:
        sections = parse(" BREAK ".join(["a (red:1.2) star on a blue background"] * count)).sections
        wordings[count] = {"text_encoder": sections, "text_encoder_2": sections}
    taken_ms: dict[int, list[float]] = {count: [] for count in CHUNKS}
    for round_ in range(rounds + 2):
        for count, wording in wordings.items():
            started = time.perf_counter()
            text.encode(wording, {})
            if round_ >= 2:
                taken_ms[count].append((time.perf_counter() - started) * 1000)
    medians = {count: statistics.median(times) for count, times in taken_ms.items()}
    return {
        "rounds": rounds,
        "median_ms": {str(count): round(ms, 2) for count, ms in medians.items()},
        "ratio": {str(count): round(ms / medians[1], 2) for count, ms in medians.items()},
    }


def sentence(result: Document) -> str:
    ratio = result["ratio"]
    return (
        f"Encoding a prompt of two chunks takes {ratio['2']} times as long as one, of three "
        f"{ratio['3']} times (the miniature, on a CPU)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks prompts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="prompts-") as folder:
        result = measure(Studio(Path(folder)), arguments.rounds)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(sentence(result))


if __name__ == "__main__":
    main()
