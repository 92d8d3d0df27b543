"""Pack a diffusers folder into one file, because an upload is one file.

Tensors are named ``unet/conv_in.weight``; the metadata has the scheduler's configuration.
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
from assets.formats.tensors import PlannedTensor, write_tensors


def pack_folder(model: Path, target: Path, *, prediction_is_declared: bool = False) -> Path:
    """Pack ``model`` into ``target``; check the scheduler unless ``prediction_is_declared``.

    Raises:
        IngestRejected: no readable UNet, or a configuration needs unsupported arithmetic.
    """
    scheduler = folder_config(model, "scheduler", "scheduler_config.json")
    if not prediction_is_declared:
        prediction_of_scheduler(scheduler)  # reject before gigabytes are uploaded
    with ExitStack() as stack:
        planned: dict[str, PlannedTensor] = {}
        for component in MODEL_COMPONENTS:
            tensors = folder_weights(model, component, stack)
            if tensors is None:
                continue
            if problems := other_arithmetic(component, folder_config(model, component)):
                raise IngestRejected(*(f"{model}: {component}: {each}" for each in problems))
            planned |= {f"{component}/{name}": tensor for name, tensor in tensors.items()}
        if not any(name.startswith("unet/") for name in planned):
            raise IngestRejected(f"{model} is not a diffusers folder: it has no unet")
        metadata = {SCHEDULER_METADATA: json.dumps(scheduler)} if scheduler else {}
        write_tensors(target, planned, metadata)
    return target
