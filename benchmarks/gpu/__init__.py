"""The engine on one GPU, in programs of a few minutes: correctness first, then timings.

    bash benchmarks/gpu.sh 1                              # part 1 on a GPU; then 2, 3
    python -m benchmarks gpu plain --budget 165 --out F   # one program
    python -m benchmarks gpu --dry-run                    # all, small, on a CPU
    python -m benchmarks gpu table F...                   # as Markdown

A full-size SDXL has random weights in device memory. Stages beyond the budget are skipped; the JSON
is rewritten after each. Needs torch, transformers, diffusers, cachetools; no Ray, no platform.
"""

from benchmarks.gpu.command import main

__all__ = ["main"]
