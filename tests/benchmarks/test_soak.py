"""The soak's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.client import Answer
from benchmarks.soak.background import Background
from benchmarks.soak.figures import grown, growth, latencies, table, unseen
from benchmarks.soak.plot import plot
from benchmarks.soak.resource_usage import PARTS, PLACES, REST, private_bytes

SPARED = ("gateway", "replica")


def sample(minute: int, leak: float = 0.0) -> dict[str, Any]:
    parts = [*(part for _, part in PARTS), REST]
    return {
        "at_s": 60.0 * minute,
        "bytes": dict.fromkeys(parts, 100000000.0),
        "spared": {
            "gateway": {"bytes": 1e8 * (1 + leak * minute), "descriptors": 60},
            "replica": {"bytes": 7e8, "descriptors": 70},
        },
        "files": dict.fromkeys(PLACES, 100),
    }


def test_only_a_leak_counts_as_growth() -> None:
    assert grown(growth([sample(minute) for minute in range(60)])) == []
    assert grown(growth([sample(minute, leak=0.01) for minute in range(60)])) == ["gateway bytes"]


def test_gaps_in_the_observation_are_reported() -> None:
    samples = [sample(minute) for minute in range(60)]
    expected = {"looks": 60.0, "most_kills": 24.0}
    assert unseen(samples, 20, SPARED, **expected) == []
    assert unseen(samples, 3, SPARED, **expected) == ["only 3 kills of 24"]
    assert unseen(samples[:30], 20, SPARED, **expected) == ["only 30 samples of 60"]
    for late in samples[20:]:
        del late["spared"]["replica"]
    assert unseen(samples, 20, SPARED, **expected) == [
        "the spared replica died",
        "no samples of replica bytes",
        "no samples of replica descriptors",
    ]


def test_table_and_plot(tmp_path: Path) -> None:
    samples = [sample(minute) for minute in range(60)]
    answers = [Answer(0, second, second + 0.5, "p", 1) for second in range(100)]
    latency = latencies(answers)
    assert (latency["p50"], latency["max"]) == (0.5, 0.5)
    result = {
        "minutes": 60, "requests": 100, "lost": 0, "wrong": 0, "double_charges": 0,
        "missing_charges": 0, "sent_again": 2, "latency_s": latency, "growth": growth(samples),
        "kills": [{"at_s": 70.0, "what": "replica killed"}], "samples": samples,
        "answers": [[answer.asked_s, 0.5] for answer in answers],
    }  # fmt: skip
    printed = table(result)
    assert "| 60 | 100 | 1 | 2 | 0 | 0 | 0 | 0 | 0.50 | 0.50 | 0.50 |" in printed
    assert "| gateway memory, MiB | 95 | 95 | 1.00 |" in printed
    plot(result, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_background_error_is_raised_by_the_block() -> None:
    class Broken(Background):
        def _run(self) -> None:
            raise RuntimeError("nothing was watched")

    with pytest.raises(RuntimeError, match="nothing was watched"), Broken():
        pass


def test_private_bytes_covers_a_process() -> None:
    import os

    held = b"x" * (32 << 20)
    assert private_bytes(os.getpid()) > len(held)
