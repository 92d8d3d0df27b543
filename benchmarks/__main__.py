"""Run a benchmark: ``python -m benchmarks NAME``."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "http": "the running platform from outside: k6 and locust over four scenarios",
    "overhead": "the platform's overhead per image, beside a bare echo on Ray",
    "library": "library calls of a tenant with 10,000 assets and of one with 100",
    "upload": "the memory of every process during the upload of a large file",
    "swap": "switching recipes: the engine and stock diffusers, interleaved",
    "load": "loading weights onto the device: the engine, safetensors, a bare read",
    "gpu": "the full-size engine on one GPU, in programs; --dry-run is small, on a CPU",
    "replay": "router, tiers and fairness on a stream of requests, compared with other policies",
    "faults": "faults injected into a running platform under load; prints a table",
    "soak": "an hour at 70 % load with random assets and kills; plots memory and files",
    "coldstart": "the phases of a replica's start",
    "attacks": "generation time of one tenant while another attacks the gateway",
    "followers": "what following a job costs, and what a cancelled job costs",
    "callers": "what becomes of hostile and broken callers of the RPC",
    "wire": "one call to a known process: Serve handle, Ray actor, frames of pickles, gRPC",
    "prompts": "encoding times of prompts of one, two and three chunks",
    "gallery": "the images of docs/generation.md",
    "estimate": "estimates of /v1/estimate against what requests then take",
    "same": "two commits generate the same images, bit by bit",
    "addressing": "one Serve application per replica or a targeted router; stub replicas",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        for known, description in BENCHMARKS.items():
            print(f"python -m benchmarks {known:12} {description}")
        raise SystemExit(0 if name in ("", "-h", "--help") else 2)
    sys.argv = [f"benchmarks {name}", *sys.argv[2:]]
    module = importlib.import_module(f"benchmarks.{name}")
    module.main()


if __name__ == "__main__":
    main()
