"""Estimates against what requests then take, on an idle platform with the miniature.

Random sizes, steps, samplers, guidance, LoRAs and numbers of images; each request is estimated,
then generated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from rich.progress import track

from benchmarks.document import Document
from serving.cli.client import Client
from serving.generation.samplers import Sampler
from serving.generation.sizes import WIRE_SIZES
from serving.miniature.catalogue import CATALOGUE
from tests.support.platforms import running

RESULT = Path(__file__).parent / "results" / "estimate.json"
REQUESTS, WARMING = 50, 10
#: An estimate is good within this share of the time taken.
NEAR = 0.25


def random_request(rng: random.Random) -> Document:
    width, height = rng.choice(WIRE_SIZES)
    loras = [f"commons:{entry.name}" for entry in CATALOGUE if entry.kind == "lora"]
    return {
        "prompt": "a red star on a blue background",
        "sampler": rng.choice(get_args(Sampler)),
        "steps": rng.randint(2, 30),
        "cfg_scale": rng.choice((1.0, 3.0, 7.0)),
        "num_images": rng.choice((1, 1, 1, 2, 4)),
        "loras": dict.fromkeys(rng.sample(loras, rng.randint(0, 2)), 0.7),
        "seed": rng.randrange(2**32),
        "width": width,
        "height": height,
        "image_encoding": "jpeg",
    }


def measure(client: Client, requests: int, seed: int) -> list[Document]:
    """Return each request's figures: the estimate and the seconds taken."""
    rng = random.Random(seed)
    for _ in range(WARMING):
        client.generate(random_request(rng))
    rows: list[Document] = []
    for _ in track(range(requests), "requests"):
        request = random_request(rng)
        estimated = client.call("POST", "/v1/estimate", json=request)
        started = time.perf_counter()
        answer = client.generate(request)
        taken_s = time.perf_counter() - started
        rows.append(
            {
                "estimated_s": round(estimated["seconds"]["total"], 4),
                "taken_s": round(taken_s, 4),
                "engine_s": round(answer["prediction_time_ms"] / 1000, 4),
                "evaluations": estimated["evaluations"],
                "work": estimated["work"],
            }
        )
    return rows


def share_near(rows: list[Document]) -> float:
    near = sum(abs(row["estimated_s"] / row["taken_s"] - 1) <= NEAR for row in rows)
    return float(near) / len(rows)


def sentence(result: Document) -> str:
    rows = result["requests"]
    median = statistics.median(abs(row["estimated_s"] / row["taken_s"] - 1) for row in rows)
    return (
        f"Of {len(rows)} random requests to an idle platform, {share_near(rows):.0%} took within "
        f"{NEAR:.0%} of the estimate; the median error is {median:.0%}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks estimate", description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with (
        TemporaryDirectory() as folder,
        running(Path(folder), "--in-process", replicas=1) as platform,
    ):
        rows = measure(platform.client("bench"), arguments.requests, arguments.seed)
    result: Document = {"near": NEAR, "requests": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(sentence(result))


if __name__ == "__main__":
    main()
