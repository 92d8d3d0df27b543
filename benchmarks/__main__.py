"""``python -m benchmarks NAME``: see each module's docstring."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "http": "the running platform from outside: k6 and locust over four scenarios",
    "overhead": "what the platform adds to a picture, beside a bare echo on the same Ray",
    "library": "a tenant with 10,000 assets beside one with 100",
    "upload": "the memory of every process while a large file comes in",
    "swap": "becoming a recipe: ours against stock diffusers, interleaved",
    "load": "weights from a file onto the device: ours, safetensors, the bare reading",
    "gpu": "the engine on one GPU at full size, program by program; --dry-run is small, on a CPU",
    "replay": "the router, the tiers and the fairness on a stream of requests, beside others' ways",
    "faults": "what a platform of this kind meets, injected under load; a table at the end",
    "soak": "an hour at 70 % load with random assets and random kills; plots of memory and files",
    "coldstart": "a replica's start by its parts, and what was shortened",
    "attacks": "another tenant's image while the gateway is attacked, beside its time alone",
    "wire": "one call to a known process: a Serve handle, an actor, our own wire",
    "addressing": "slots against a targeted router, at 2, 32 and 128 stub replicas",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        for known, what in BENCHMARKS.items():
            print(f"python -m benchmarks {known:12} {what}")
        raise SystemExit(0 if name in ("", "-h", "--help") else 2)
    sys.argv = [f"benchmarks {name}", *sys.argv[2:]]
    module = importlib.import_module(f"benchmarks.{name}")
    module.main()


if __name__ == "__main__":
    main()
