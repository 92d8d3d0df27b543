"""The training loop: moving average, loss curve, preview images, resumption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.document import Document

#: Maps a step to its batch's loss.
Loss = Callable[[int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Length and learning rate: a short rise to ``rate``, then a cosine to 0."""

    steps: int
    rate: float
    decay: float = 0.999
    weight_decay: float = 1e-3
    clip: float = 1.0
    save_every: int = 500


class Average:
    """An exponential moving average of parameters, which is shipped.

    The decay grows from about 0.1: initial values lose influence.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self._decay = decay
        self.values = [p.detach().clone() for p in parameters]
        self._live = list(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (step + 9) / (step + 90))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for value, live in zip(self.values, self._live, strict=True):
            kept = live.detach().clone()
            live.copy_(value)
            value.copy_(kept)


def train(
    name: str,
    folder: Path,
    parameters: Sequence[torch.Tensor],
    loss: Loss,
    plan: TrainingPlan,
    preview: Callable[[Path], None] | None = None,
) -> None:
    """Minimise ``loss`` over ``parameters``, which end as their moving average.

    ``folder/NAME.pt`` is the state, ``NAME.json`` the curve, ``NAME-STEP.png`` the preview. Does
    nothing more if the saved state is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        parameters, plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
    )
    average = Average(parameters, plan.decay)
    state_path, curve_path = folder / f"{name}.pt", folder / f"{name}.json"
    first, curve = 0, []
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        first, curve = state["step"], state["curve"]
        with torch.no_grad():
            for target, value in zip(parameters, state["live"], strict=True):
                target.copy_(value)
            for target, value in zip(average.values, state["average"], strict=True):
                target.copy_(value)
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        state: Document = {
            "step": step,
            "curve": curve,
            "live": [p.detach() for p in parameters],
            "average": average.values,
            "optimizer": optimizer.state_dict(),
        }
        partial = state_path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(state_path)
        curve_path.write_text(json.dumps(curve) + "\n")
        if preview is not None:
            average.swap()
            preview(folder / f"{name}-{step:05}.png")
            average.swap()

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
    )  # fmt: skip
    recent, began = 0.0, time.monotonic()
    with Progress(*columns, refresh_per_second=0.2) as progress:
        task = progress.add_task(name, total=plan.steps, completed=first, loss=math.nan)
        for step in range(first, plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * one_cycle(step / plan.steps)
            torch.manual_seed(step)
            value = loss(step)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(step)
            recent = value.item() if step == first else 0.98 * recent + 0.02 * value.item()
            if (step + 1) % 50 == 0:
                curve.append((step + 1, round(recent, 5), round(time.monotonic() - began, 1)))
            if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                save(step + 1)
            progress.update(task, completed=step + 1, loss=recent)
    average.swap()


def batches(rows: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def one_cycle(progress: float, rise: float = 0.06) -> float:
    """Return the rate's factor at ``progress`` 0–1."""
    if progress < rise:
        return 0.05 + 0.95 * progress / rise
    return 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))
