"""Uses SDXL and the library with ``octoai==1.11.0`` installed, and tries the rest.

Prints JSON.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
from octoai.asset_library import Data_Checkpoint, Data_Lora, Data_TextualInversion, Data_Vae
from octoai.client import AsyncOctoAI, OctoAI
from octoai.core.api_error import ApiError
from octoai.environment import OctoAIEnvironment
from octoai.image_gen import UnprocessableEntityError

url, key, source, lora, inversion, checkpoint, large, vae = sys.argv[1:9]
environment = OctoAIEnvironment(default=url, image_gen=url, text_gen=url)
client = OctoAI(api_key=key, environment=environment)
library = client.asset_library
common = {
    "data_type": "fp16", "engine": "image/stable-diffusion-xl-v1-0", "file_format": "safetensors",
}  # fmt: skip
ASK = {"prompt": "a qzebra star", "seed": 5, "steps": 2}
seen: dict[str, Any] = {}


def refused(call: Callable[[], object]) -> list[Any] | str:
    """The status of the client's own error, not pydantic's."""
    try:
        call()
    except ApiError as error:
        code = error.body["code"] if isinstance(error.body, dict) else error.body.detail[0].type
        return [type(error).__name__, error.status_code, code]
    return "no error"


def assets() -> tuple[Any, Any, Any, Any]:
    style = library.create_from_file(
        file=lora, data=Data_Lora(trigger_words=["stylish"], **common), name="octo-style",
        description="d", transfer_api_type="sts",
    )  # fmt: skip
    word = library.create_from_file(
        file=inversion, data=Data_TextualInversion(trigger_words=["qzebra"], **common),
        name="octo-word",
    )  # fmt: skip
    other = library.create_from_file(
        file=checkpoint, data=Data_Checkpoint(**common), name="octo-other"
    )
    decoder = library.create_from_file(file=vae, data=Data_Vae(**common), name="octo-vae")
    fetched = library.create_from_url(
        url=source, data=Data_TextualInversion(trigger_words=["tw"], **common), name="octo-url"
    )
    big = library.create_from_file(file=large, data=Data_Checkpoint(**common), name="octo-large")
    everything = [style, word, other, decoder, fetched, big]
    seen["statuses"] = sorted({asset.status for asset in everything})
    seen["large"] = big.size_bytes
    listed = library.list(name="octo-style")
    seen["listed"] = [listed.total, [a.id for a in listed.data] == [style.id], listed.has_more]
    loras = library.list(asset_type=["lora"], engine=[common["engine"]], data_type="fp16", limit=2)
    seen["loras"] = loras.total
    public = library.list(is_public=True, owner="octoai", get_preview_urls=True)
    seen["public"] = public.total
    got = [library.get(ref).asset.id for ref in ("octo-style", style.id)]
    seen["got"] = got == [style.id] * 2
    seen["others"] = library.get("octoai:outline").asset.name
    seen["data"] = type(library.get("octo-style").asset.data).__name__
    return style, word, other, decoder


def images(style: Any, word: Any, other: Any, decoder: Any) -> Any:
    by_id = client.image_gen.generate_sdxl(
        loras={style.id: 0.8}, checkpoint=other.id, vae=decoder.id,
        textual_inversions={word.id: "qzebra"}, num_images=2, **ASK,
    )  # fmt: skip
    by_name = client.image_gen.generate_sdxl(
        loras={"octo-style": 0.8}, checkpoint="octo-other", vae="octo-vae",
        textual_inversions={"octo-word": "qzebra"}, num_images=2, **ASK,
    )  # fmt: skip
    base = client.image_gen.generate_sdxl(
        prompt2=None, negative_prompt=None, sampler="K_EULER", width=1024, height=1024, **ASK
    )
    seen["same"] = [i.image_b64 for i in by_id.images] == [i.image_b64 for i in by_name.images]
    seen["seeds"] = [image.seed for image in by_id.images]
    seen["changed"] = by_id.images[0].image_b64 != base.images[0].image_b64
    return base


SAMPLERS = (
    "PNDM", "LMS", "KLMS", "DDIM", "DDPM", "HEUN", "K_HEUN", "K_EULER", "K_EULER_ANCESTRAL",
    "DPM_SOLVER_MULTISTEP", "DPM_PLUS_PLUS_2M_KARRAS", "DPM_PLUS_PLUS_2M_SDE",
    "DPM_PLUS_PLUS_2M_SDE_KARRAS", "DPM_SINGLE", "DPM_2", "DPM_2_KARRAS", "DPM_2_ANCESTRAL",
    "DPM_2_ANCESTRAL_KARRAS", "DPM_PLUS_PLUS_SDE_KARRAS", "UNI_PC", "LCM",
)  # fmt: skip


def choices() -> None:
    """Every sampler, a style, clip skip."""

    def image(**fields: object) -> str:
        answer = client.image_gen.generate_sdxl(**{**ASK, "steps": 4, **fields})
        return str(answer.images[0].image_b64)

    images = [image(sampler=word) for word in SAMPLERS]
    seen["samplers"] = [len(images), len(set(images)) > 12]
    styled = image(style_preset="anime")
    seen["style"] = [styled != image(), image(style_preset="base") == image()]
    skipped = [image(style_preset="anime", clip_skip=count) for count in (1, 2, 3)]
    seen["clip_skip"] = [skipped[0] == skipped[1], skipped[2] != skipped[1]]


def errors() -> None:
    seen["422"] = [
        type(error).__name__
        for error in (caught(steps=1000), caught(width=5, height=5), caught(loras={"octo-word": 1}))
    ]
    seen["404"] = refused(lambda: library.get("octo-nothing"))
    seen["taken"] = refused(
        lambda: library.create(asset_type="lora", data=Data_Lora(**common), name="octo-style")
    )
    wrong = OctoAI(api_key="wrong", environment=environment)
    seen["401"] = refused(lambda: wrong.image_gen.generate_sdxl(prompt="x"))


def caught(**fields: object) -> UnprocessableEntityError | str:
    try:
        client.image_gen.generate_sdxl(**{**ASK, **fields})
    except UnprocessableEntityError as error:
        return error if error.body.detail else "no detail"
    raise AssertionError(fields)


def not_served() -> None:
    image, tune, text = client.image_gen, client.fine_tuning, client.text_gen
    calls = [
        lambda: image.generate_controlnet_sdxl(prompt="x", controlnet="octoai:canny_sdxl"),
        lambda: image.generate_sd3(prompt="x"),
        lambda: image.generate_flux_dev(prompt="x"),
        lambda: image.generate_flux_schnell(prompt="x"),
        lambda: image.generate_svd(image="aGk="),
        lambda: tune.list(),
        lambda: tune.get("t"),
        lambda: tune.cancel("t"),
        lambda: tune.delete("t"),
        lambda: text.create_completion(prompt="x", model="qwen1.5-32b-chat"),
    ]
    seen["501"] = sorted({json.dumps(refused(call)) for call in calls})


def later() -> None:
    """This client sends a key with it only if its caller does."""
    own = httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60)
    with_key = OctoAI(api_key=key, environment=environment, httpx_client=own)
    future = with_key.infer_async(f"{url}/generate/sdxl", ASK)
    deadline = time.monotonic() + 60
    while not with_key.is_future_ready(future):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    answer = with_key.get_future_result(future)
    now = with_key.infer(f"{url}/generate/sdxl", ASK)
    seen["later"] = answer["images"][0]["image_b64"] == now["images"][0]["image_b64"]
    seen["health"] = with_key.health_check(f"{url}/healthcheck")


async def asynchronously(style: Any) -> None:
    """The other half of the client."""
    other = AsyncOctoAI(api_key=key, environment=environment)
    made = await other.asset_library.create_from_file(
        file=inversion, data=Data_TextualInversion(trigger_words=["aw"], **common), name="octo-a"
    )
    answers = await asyncio.gather(
        *(other.image_gen.generate_sdxl(loras={style.id: 0.5}, **ASK) for _ in range(3))
    )
    images = {answer.images[0].image_b64 for answer in answers}
    listed = await other.asset_library.list(name="octo-a")
    gone = await other.asset_library.delete(made.id)
    seen["async"] = [made.status, len(images), listed.total, gone.id == made.id]
    try:
        await other.fine_tuning.list()
    except ApiError as error:
        seen["async 501"] = error.status_code


mine = assets()
base = images(*mine)
seen["bytes"] = base64.b64decode(base.images[0].image_b64)[:2].hex()
choices()
errors()
not_served()
later()
asyncio.run(asynchronously(mine[0]))
deleted = library.delete(mine[0].id)
seen["deleted"] = [deleted.id == mine[0].id, bool(deleted.deleted_at)]
seen["after"] = refused(lambda: client.image_gen.generate_sdxl(loras={mine[0].id: 1.0}, **ASK))
print(json.dumps(seen))
