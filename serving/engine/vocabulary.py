"""CLIP's byte-pair vocabulary: 49,408 tokens from the merges published by OpenAI.

openai/CLIP (MIT; see NOTICE): 256 bytes, the same at a word's end, 48,894 merges, two special
tokens.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77
_MERGES = 49_152 - 256 - 2


def _byte_characters() -> list[str]:
    """Printable bytes first, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


@cache
def merges() -> tuple[str, ...]:
    """Return the merges, separated by a space."""
    raw = (files("serving.engine") / "data" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(raw).decode("utf-8").split("\n")
    return tuple(lines[1 : 1 + _MERGES])


@cache
def vocabulary() -> dict[str, int]:
    """Return token → id."""
    characters = _byte_characters()
    tokens = characters + [c + "</w>" for c in characters]
    tokens += ["".join(merge.split()) for merge in merges()]
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}


def tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Return the first text encoder's tokenizer; the second's pads with ``!``."""
    return CLIPTokenizer(
        vocab=vocabulary(),
        merges=[tuple(merge.split()) for merge in merges()],
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=pad_token,
        model_max_length=MAX_TOKENS,
    )


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """Write diffusers' ``tokenizer/`` or ``tokenizer_2/``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges()) + "\n")
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    config = {
        **specials,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
