"""Train and evaluate the miniature: ``python -m benchmarks.miniature COMMAND``.

``train --only NAME`` does one training. Interrupted trainings resume.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.miniature import library
from benchmarks.miniature.base import DEFAULT_FOLDER, Miniature, export, load, load_base
from benchmarks.miniature.evaluate import evaluate, table
from benchmarks.miniature.judge import train_judge
from benchmarks.miniature.previews import generate_previews
from benchmarks.miniature.text import ENCODERS, train_text
from benchmarks.miniature.unet import train_unet
from benchmarks.miniature.vae import train_vae
from serving.miniature.catalogue import weights_file

CURVES = Path(__file__).parents[1] / "results" / "miniature_training.json"


def record_curve(name: str, folder: Path) -> None:
    """Copy a curve, rows of (step, loss, seconds), into the results."""
    curves = json.loads(CURVES.read_text()) if CURVES.is_file() else {}
    curves[name] = json.loads((folder / f"{name}.json").read_text())
    rows = [f"{json.dumps(key)}: {json.dumps(curve)}" for key, curve in sorted(curves.items())]
    CURVES.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def train_base(folder: Path, only: Sequence[str]) -> None:
    """Train the components in dependency order: the UNet with the shipped float16 VAE and
    encoders."""
    if "vae" in only:
        export("vae", train_vae(folder), weights_file("vae"))
        record_curve("vae", folder)
    if "text" in only:
        for component, encoder in train_text(folder).items():
            export(component, encoder, weights_file(component))
            record_curve(component, folder)
    if "unet" in only:
        from benchmarks.miniature import text, vae

        codec, encoders = vae.build(), {c: text.build(c) for c in ENCODERS}
        load("vae", codec)
        for component, encoder in encoders.items():
            load(component, encoder)
        export("unet", train_unet(folder, encoders, codec), weights_file("unet"))
        record_curve("unet", folder)


def train_library(folder: Path, only: Sequence[str]) -> None:
    for name in library.NAMES:
        if name in only:
            base: Miniature = load_base()  # training changes it
            target = weights_file(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            library.trainer(name)(folder, base, target)
            record_curve(name, folder)


def main() -> None:
    steps = ("vae", "text", "unet", "judge", *library.NAMES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train the shipped weights")
    training.add_argument("--only", nargs="+", choices=steps, default=steps)
    training.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    training.add_argument("--threads", type=int, default=os.cpu_count())
    judging = commands.add_parser("evaluate", help="evaluate the shipped weights")
    judging.add_argument("--prompts", type=int, default=200)
    judging.add_argument("--effects", type=int, default=50, help="prompts for each asset")
    judging.add_argument("--threads", type=int, default=os.cpu_count())
    result = commands.add_parser("previews", help="regenerate the library's preview images")
    result.add_argument("--threads", type=int, default=os.cpu_count())
    commands.add_parser("table", help="print the results as docs/miniature.md holds them")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    torch.set_num_threads(arguments.threads or 1)
    if arguments.command == "evaluate":
        evaluate(arguments.prompts, arguments.effects)
        return
    if arguments.command == "previews":
        generate_previews()
        return
    train_base(arguments.folder, arguments.only)
    if "judge" in arguments.only:
        train_judge(arguments.folder)
    train_library(arguments.folder, arguments.only)


if __name__ == "__main__":
    main()
