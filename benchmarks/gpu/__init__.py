"""The engine on one GPU, in programs of a few minutes each: correctness first, then figures.

    bash benchmarks/gpu.sh 1                              # what is run on the card; then 2, then 3
    python -m benchmarks gpu plain --budget 165 --out F   # one program of stages
    python -m benchmarks gpu --dry-run                    # all programs, small, on a CPU
    python -m benchmarks gpu table F...                   # measured beside predicted, as Markdown

A full-size SDXL with random weights is made in the device's memory; nothing is written to a disk.
Each stage has an expected duration. A stage that does not fit the remaining budget is skipped, a
stage that fails records its error, and the JSON is replaced after each stage. Needs torch,
transformers, diffusers and cachetools, but neither Ray nor the platform.
"""

from benchmarks.gpu.command import main

__all__ = ["main"]
