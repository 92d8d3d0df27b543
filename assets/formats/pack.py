"""A diffusers folder as one file, because an upload is one file.

Each tensor keeps its name, behind its component's: ``unet/conv_in.weight``; the scheduler's
configuration goes into the metadata. A component that the folder lacks is left out; the base
model's serves in its place.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from assets.content import MODEL_COMPONENTS
from assets.errors import IngestRejected
from assets.families.sdxl import other_arithmetic
from assets.formats.folder_weights import folder_config, folder_weights
from assets.formats.prediction_source import SCHEDULER_METADATA, prediction_of_scheduler
from assets.formats.tensors import Planned, write_tensors


def pack_folder(model: Path, target: Path, *, prediction_is_said: bool = False) -> Path:
    """Write ``target``. ``prediction_is_said``: the owner says what the UNet predicts, so the
    scheduler's configuration does not decide.

    Raises:
        IngestRejected: the folder has no UNet that can be read, or a configuration asks for
        arithmetic that is not served.
    """
    scheduler = folder_config(model, "scheduler", "scheduler_config.json")
    if not prediction_is_said:
        prediction_of_scheduler(scheduler)  # refused now rather than after gigabytes were sent
    with ExitStack() as stack:
        planned: dict[str, Planned] = {}
        for component in MODEL_COMPONENTS:
            tensors = folder_weights(model, component, stack)
            if tensors is None:
                continue
            if others := other_arithmetic(component, folder_config(model, component)):
                raise IngestRejected(*(f"{model}: {component}: {other}" for other in others))
            planned |= {f"{component}/{name}": tensor for name, tensor in tensors.items()}
        if not any(name.startswith("unet/") for name in planned):
            raise IngestRejected(f"{model} is no diffusers folder: it has no unet")
        metadata = {SCHEDULER_METADATA: json.dumps(scheduler)} if scheduler else {}
        write_tensors(target, planned, metadata)
    return target
