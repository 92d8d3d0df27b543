"""Request traces, in memory and as CSV.

CSV, in order of arrival::

    arrival_s,tenant,checkpoint,loras,steps,images,width,height
    0.41,t17,c3,"[{""id"":""l9"",""scale"":0.7}]",30,1,1024,1024

Seconds from the beginning, JSON LoRAs (``[]`` for none), sizes in pixels. Checkpoints and LoRAs
have separate namespaces. An empty checkpoint is the served base model.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("arrival_s", "tenant", "checkpoint", "loras", "steps", "images", "width", "height")

#: A usual image, the unit of ``cost``.
USUAL_STEPS, USUAL_PIXELS = 30, 1024 * 1024


#: Replaces an empty checkpoint.
BASE_MODEL = "(base model)"
_CHECKPOINT, _LORA = "checkpoint/", "lora/"


def checkpoint_key(name: str) -> str:
    """Return the checkpoint's asset key."""
    return _CHECKPOINT + name


def lora_key(name: str) -> str:
    """Return the LoRA's asset key."""
    return _LORA + name


def is_checkpoint(key: str) -> bool:
    return key.startswith(_CHECKPOINT)


class BadTrace(Exception):
    """An invalid trace file; the message gives line and reason."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    arrival_s: float
    tenant: str
    checkpoint: str
    loras: tuple[tuple[str, float], ...] = ()
    steps: int = USUAL_STEPS
    images: int = 1
    width: int = 1024
    height: int = 1024

    @property
    def assets(self) -> tuple[str, ...]:
        """Keys of the needed assets, the checkpoint first."""
        return (checkpoint_key(self.checkpoint), *(lora_key(name) for name, _ in self.loras))

    @property
    def work(self) -> float:
        """Steps × pixels × images."""
        return float(self.steps * self.width * self.height * self.images)

    @property
    def cost(self) -> float:
        """In usual images."""
        return self.work / (USUAL_STEPS * USUAL_PIXELS)


def write_trace(path: Path, trace: Iterable[TraceRequest]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for r in trace:
            loras = json.dumps([{"id": name, "scale": scale} for name, scale in r.loras])
            writer.writerow(
                (
                    f"{r.arrival_s:.6f}", r.tenant, r.checkpoint, loras,
                    r.steps, r.images, r.width, r.height,
                )
            )  # fmt: skip


def read_trace(path: Path) -> list[TraceRequest]:
    """Read a CSV trace. Raises BadTrace."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise BadTrace(f"{path}: missing columns: {', '.join(sorted(missing))}")
        trace: list[TraceRequest] = []
        for row in reader:
            try:
                trace.append(_parse(row))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadTrace(f"{path}, line {reader.line_num}: {error}") from None
            if len(trace) > 1 and trace[-1].arrival_s < trace[-2].arrival_s:
                raise BadTrace(
                    f"{path}, line {reader.line_num}: arrival_s is lower than on the line before; "
                    "sort the file by arrival_s"
                )
    return trace


def _parse(row: dict[str, str]) -> TraceRequest:
    loras = tuple((str(use["id"]), float(use["scale"])) for use in json.loads(row["loras"]))
    request = TraceRequest(
        float(row["arrival_s"]), row["tenant"], row["checkpoint"].strip() or BASE_MODEL, loras,
        int(row["steps"]), int(row["images"]), int(row["width"]), int(row["height"]),
    )  # fmt: skip
    if not (math.isfinite(request.arrival_s) and request.arrival_s >= 0):
        raise ValueError(f"arrival_s is {row['arrival_s']}, not a number of at least 0")
    if not (request.work > 0 and request.steps > 0 and request.images > 0 and request.width > 0):
        raise ValueError("steps, images, width and height must be positive")
    if not request.tenant:
        raise ValueError("the tenant is empty")
    return request


def at_load(
    trace: list[TraceRequest], load: float, replicas: int, picture_s: float
) -> list[TraceRequest]:
    """Rescale arrivals so that ``replicas`` would be busy for the share ``load`` of the time
    without loading. ``picture_s``: seconds per usual image."""
    work_s = sum(r.cost for r in trace) * picture_s
    span_s = trace[-1].arrival_s - trace[0].arrival_s
    scale = work_s / (replicas * load) / span_s
    first = trace[0].arrival_s
    return [
        TraceRequest((r.arrival_s - first) * scale, r.tenant, r.checkpoint, r.loras, r.steps,
                     r.images, r.width, r.height)
        for r in trace
    ]  # fmt: skip
