"""AUTOMATIC1111's text of an image's parameters: what other programs read back from a file.

The last line has ``name: value`` pairs; values with a comma, colon or line break are JSON strings.
A model's hash is the first ten digits of its uploaded file's SHA-256.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from serving.generation.contract import AssetMark, GenerationParams, Provenance
from serving.generation.samplers import SAMPLERS, Schedule, Solver, schedule_of
from serving.generation.styles import PLACE, Style

PROGRAM = "Asset Orchestrator"
HASH_DIGITS = 10

_SOLVERS: Mapping[Solver, str] = {
    "ddim": "DDIM", "ddpm": "DDPM", "dpm2": "DPM2", "dpm2_ancestral": "DPM2 a",
    "dpm_singlestep": "DPM-Solver singlestep", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "euler": "Euler",
    "euler_ancestral": "Euler a", "heun": "Heun", "lcm": "LCM", "lms": "LMS", "plms": "PLMS",
    "unipc": "UniPC",
}  # fmt: skip
_SCHEDULES: Mapping[Schedule, str] = {
    "leading": "Leading", "multistep": "Multistep", "lcm": "LCM", "uniform": "Uniform",
    "trailing": "Trailing", "sgm_uniform": "SGM Uniform", "simple": "Simple", "beta": "Beta",
    "karras": "Karras", "exponential": "Exponential",
}  # fmt: skip
#: Others' files may have anything.
_MAX_CHARS = 100_000
#: The prompt's own, which are written for all LoRAs alike.
_TAG = re.compile(r" ?<(?:lora|lyco):[^<>\n]{1,300}>")
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_NEGATIVE = "Negative prompt:"
#: As in A1111: fewer are a part of the prompt.
_LEAST_PAIRS = 3
_MAX_NAME_CHARS = 60


class Parameters(Struct, frozen=True):
    """What a text says of an image; ``settings`` are the pairs of its last line."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]


def parameters_text(
    params: GenerationParams, provenance: Provenance, seed: int, width: int, height: int
) -> str:
    """Return one image's text."""
    own = params.prompt if params.syntax == "plain" else _TAG.sub("", params.prompt)
    prompt = _styled(" ".join(own.split(" ")).strip(), params.styles)
    lines = [" ".join((prompt, *map(_tag, provenance.loras)))]
    negative = _styled_negative(params.negative_prompt, params.styles)
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    pairs = _pairs(params, provenance, seed, width, height)
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs))
    return "\n".join(lines)


def _tag(lora: AssetMark) -> str:
    """Return A1111's tag: the text encoders' weight, then the UNet's if it differs."""
    if lora.text_weight in (None, lora.weight):
        return f"<lora:{lora.name}:{lora.weight:g}>"
    return f"<lora:{lora.name}:{lora.text_weight:g}:{lora.weight:g}>"


def _styled(prompt: str, styles: Sequence[Style]) -> str:
    for style in styles:
        if PLACE in style.prompt:
            prompt = style.prompt.replace(PLACE, prompt, 1)
        elif style.prompt.strip():
            prompt = f"{prompt}, {style.prompt}"
    return prompt


def _styled_negative(prompt: str | None, styles: Sequence[Style]) -> str:
    texts = [style.negative_prompt for style in styles]
    return ", ".join(text for text in (*texts, prompt or "") if text.strip())


def _pairs(
    params: GenerationParams, provenance: Provenance, seed: int, width: int, height: int
) -> Iterator[tuple[str, object]]:
    yield "Steps", params.steps
    yield "Sampler", _SOLVERS[SAMPLERS[params.sampler].solver]
    yield "Schedule type", _SCHEDULES[schedule_of(params.sampler, params.schedule)]
    yield "CFG scale", f"{params.cfg_scale:g}"
    yield "Seed", seed
    yield "Size", f"{width}x{height}"
    model, vae = provenance.model, provenance.vae
    if model.sha256:
        yield "Model hash", model.sha256[:HASH_DIGITS]
    yield "Model", model.name
    if vae is not None:
        if vae.sha256:
            yield "VAE hash", vae.sha256[:HASH_DIGITS]
        yield "VAE", vae.name
    if params.clip_skip is not None:
        yield "Clip skip", params.clip_skip
    if params.styles:
        yield "Styles", ", ".join(f"{style.name} v{style.version}" for style in params.styles)
    for name, assets in (("Lora hashes", provenance.loras), ("TI hashes", provenance.inversions)):
        if hashed := [asset for asset in assets if asset.sha256]:
            yield name, ", ".join(f"{each.name}: {each.sha256[:HASH_DIGITS]}" for each in hashed)
    yield "Version", PROGRAM


def _quoted(value: object) -> str:
    text = str(value)
    if any(mark in text for mark in ',:\n"'):
        return json.dumps(text, ensure_ascii=False)
    return text


def read_parameters(text: str) -> Parameters:
    """Read a text of this or another program, by A1111's rules. Any text is valid."""
    *lines, last = text[:_MAX_CHARS].strip().split("\n")
    pairs = dict(_read_pairs(last))
    if len(pairs) < _LEAST_PAIRS:
        lines.append(last)
        pairs = {}
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in lines:
        words = line.strip()
        if words.startswith(_NEGATIVE):
            current, words = negative, words[len(_NEGATIVE) :].strip()
        current.append(words)
    settings = dict(pairs)
    for name, value in pairs.items():
        if size := _SIZE.fullmatch(value):
            settings[f"{name}-1"], settings[f"{name}-2"] = size[1], size[2]
    return Parameters("\n".join(prompt), "\n".join(negative), settings)


def _read_pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs between commas that are not in quotes."""
    for part in _parts(line):
        name, colon, value = part.partition(":")
        name, value = name.strip(), value.strip()
        if colon and name and len(name) <= _MAX_NAME_CHARS and name[0].isalnum():
            yield name, _unquoted(value)


def _parts(line: str) -> Iterator[str]:
    begin = position = 0
    in_quotes = False
    while position < len(line):
        match line[position]:
            case "\\" if in_quotes:
                position += 1
            case '"':
                in_quotes = not in_quotes
            case "," if not in_quotes:
                yield line[begin:position]
                begin = position + 1
        position += 1
    yield line[begin:]


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
