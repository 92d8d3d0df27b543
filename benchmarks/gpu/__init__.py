"""The engine on one GPU, in programs of a few minutes: correctness first, then timings.

    bash benchmarks/gpu.sh 1                              # part 1 on a GPU; then 2, then 3
    python -m benchmarks gpu plain --budget 165 --out F   # one program of stages
    python -m benchmarks gpu --dry-run                    # all programs, small, on a CPU
    python -m benchmarks gpu table F...                   # measured and predicted, as Markdown

A full-size SDXL with random weights is made in device memory; no model is written to disk. Each
stage has an expected duration. A stage that exceeds the remaining budget is skipped, a failed stage
records its error, and the JSON is rewritten after each stage. Needs torch, transformers, diffusers
and cachetools, but neither Ray nor the platform.
"""

from benchmarks.gpu.command import main

__all__ = ["main"]
