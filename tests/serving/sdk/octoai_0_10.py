"""Uses SDXL and the library with ``octoai-sdk==0.10.1`` installed, and tries the rest.

Prints JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from octoai.client import Client
from octoai.clients.asset_orch import (
    AssetOrchestrator,
    CheckpointData,
    LoraData,
    TextualInversionData,
)
from octoai.clients.fine_tuning import FineTuningClient
from octoai.clients.image_gen import ImageGenerator
from octoai.errors import OctoAIClientError, OctoAIServerError, OctoAIValidationError

url, key, source, lora, inversion, checkpoint, large = sys.argv[1:8]
library = AssetOrchestrator(key, endpoint=url)
generator = ImageGenerator(api_endpoint=f"{url}/", token=key)
ENGINE = "image/stable-diffusion-xl-v1-0"
common = {"data_type": "fp16", "engine": ENGINE, "file_format": "safetensors"}
ASK = {"engine": "sdxl", "prompt": "a qzebra star", "seed": 5, "steps": 2}
seen: dict[str, Any] = {}


SAMPLERS = (
    "PNDM", "LMS", "KLMS", "DDIM", "DDPM", "HEUN", "K_HEUN", "K_EULER", "K_EULER_ANCESTRAL",
    "DPM_SOLVER_MULTISTEP", "DPM_PLUS_PLUS_2M_KARRAS", "DPM_PLUS_PLUS_2M_SDE",
    "DPM_PLUS_PLUS_2M_SDE_KARRAS", "DPM_SINGLE", "DPM_2", "DPM_2_KARRAS", "DPM_2_ANCESTRAL",
    "DPM_2_ANCESTRAL_KARRAS", "DPM_PLUS_PLUS_SDE_KARRAS", "UNI_PC", "LCM",
)  # fmt: skip


def refused(call: Callable[[], object], kind: type[Exception]) -> str:
    try:
        call()
    except kind as error:
        return type(error).__name__
    except Exception as error:
        return f"{type(error).__name__} {getattr(error, 'status', '')}".strip()
    return "no error"


def ready(asset: Any) -> Any:
    return library.wait_for_ready(asset, poll_interval=1)


style = ready(library.create(data=LoraData(**common), name="old-style", file=lora))
word = ready(
    library.create(
        data=TextualInversionData(trigger_words=["qzebra"], **common),
        name="old-word",
        file=inversion,
        description="d",
    )
)
other = ready(library.create(data=CheckpointData(**common), name="old-other", file=checkpoint))
fetched = ready(
    library.create(
        data=TextualInversionData(trigger_words=["tw"], **common), name="old-url", url=source
    )
)
big = ready(library.create(data=CheckpointData(**common), name="old-large", file=large))
seen["statuses"] = sorted({str(a.status.value) for a in (style, word, other, fetched, big)})
seen["large"] = big.size_bytes
seen["listed"] = [a.id for a in library.list(name="old-style")] == [style.id]
seen["total"] = len(library.list())
seen["public"] = len(library.list(is_public=True, owner="octoai"))
seen["got"] = [library.get(name="old-style").id, library.get(id=style.id).id] == [style.id] * 2
by_asset = generator.generate(
    loras={style: 0.8}, checkpoint=other, textual_inversions={word: "qzebra"}, num_images=2, **ASK
)
by_name = generator.generate(
    loras={"old-style": 0.8}, checkpoint="old-other", textual_inversions={"old-word": "qzebra"},
    num_images=2, **ASK,
)  # fmt: skip
base = generator.generate(**ASK)
images = [[image.to_base64() for image in a.images] for a in (by_asset, by_name, base)]
seen["same"] = images[0] == images[1]
seen["changed"] = images[0][0] != images[2][0]
seen["removed"] = base.removed_for_safety

client = Client(token=key)
future = client.infer_async(
    f"{url}/generate/sdxl", {"prompt": "a qzebra star", "seed": 5, "steps": 2}
)
deadline = time.monotonic() + 60
while not client.is_future_ready(future):
    assert time.monotonic() < deadline
    time.sleep(0.1)
later = client.get_future_result(future)
now = client.infer(f"{url}/generate/sdxl", {"prompt": "a qzebra star", "seed": 5, "steps": 2})
seen["later"] = later["images"][0]["image_b64"] == now["images"][0]["image_b64"]

drawn = [generator.generate(sampler=sampler, **ASK).images[0].to_base64() for sampler in SAMPLERS]
seen["samplers"] = len(drawn)
plain, styled = (generator.generate(style_preset=name, **ASK) for name in ("base", "anime"))
seen["style"] = styled.images[0].to_base64() != plain.images[0].to_base64()
seen["unknown"] = refused(
    lambda: generator.generate(loras={"old-nothing": 1.0}, **ASK), OctoAIClientError
)
seen["bad size"] = refused(lambda: generator.generate(width=5, **ASK), OctoAIValidationError)
tunes = FineTuningClient(token=key, endpoint=url)
seen["tunes"] = refused(lambda: tunes.list(), OctoAIServerError)
deleted = library.delete(style.id)
seen["deleted"] = deleted.id == style.id
seen["after"] = refused(lambda: generator.generate(loras={style: 1.0}, **ASK), OctoAIClientError)
print(json.dumps(seen))
