"""The soak's figures, of hours that are made up."""

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


def test_what_stays_as_it_is_has_not_grown_and_a_leak_has() -> None:
    assert grown(growth([sample(minute) for minute in range(60)])) == []
    assert grown(growth([sample(minute, leak=0.01) for minute in range(60)])) == ["gateway bytes"]


def test_what_was_not_watched_is_said() -> None:
    samples = [sample(minute) for minute in range(60)]
    seen = {"looks": 60.0, "most_kills": 24.0}
    assert unseen(samples, 20, SPARED, **seen) == []
    assert unseen(samples, 3, SPARED, **seen) == ["only 3 kills of 24"]
    assert unseen(samples[:30], 20, SPARED, **seen) == ["only 30 looks of 60"]
    for one in samples[20:]:
        del one["spared"]["replica"]
    assert unseen(samples, 20, SPARED, **seen) == [
        "the spared replica died",
        "nothing is known of replica bytes",
        "nothing is known of replica descriptors",
    ]


def test_the_table_and_the_picture(tmp_path: Path) -> None:
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


def test_what_breaks_beside_the_block_breaks_the_block() -> None:
    class Broken(Background):
        def _run(self) -> None:
            raise RuntimeError("nothing was watched")

    with pytest.raises(RuntimeError, match="nothing was watched"), Broken():
        pass


def test_memory_is_that_of_a_process() -> None:
    import os

    held = b"x" * (32 << 20)
    assert private_bytes(os.getpid()) > len(held)
