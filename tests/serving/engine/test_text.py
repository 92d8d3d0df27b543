"""The tokenizer against published files; trigger words in prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.engine.text import PromptTokenizer
from serving.engine.vocabulary import merges, vocabulary

PROMPTS = PromptTokenizer()


def test_vocabulary_is_the_published_one(real_data: Path) -> None:
    folder = real_data / "sdxl_tree" / "Juggernaut_XL_v9" / "tokenizer"
    assert vocabulary() == json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    assert list(merges()) == [line for line in lines if line]


def test_known_ids() -> None:
    tokens = PROMPTS.tokenize("a photo of a cat", "text_encoder", {})
    assert tokens.ids[:7] == (49406, 320, 1125, 539, 320, 2368, 49407)
    assert set(tokens.ids[7:]) == {49407}
    second = PROMPTS.tokenize("a photo of a cat", "text_encoder_2", {})
    assert set(second.ids[7:]) == {0}
    assert len(tokens.ids) == len(second.ids) == 77


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a zebra star", [(2, "zebra", 0), (3, "zebra", 1)]),
        ("ZEBRA, star", [(1, "zebra", 0), (2, "zebra", 1)]),
        ("zebras and a <zebra>", [(4, "zebra", 0), (5, "zebra", 1)]),
        ("no such word", []),
    ],
)
def test_trigger_words_are_whole_words_in_any_case(
    text: str, expected: list[tuple[int, str, int]]
) -> None:
    vectors = PROMPTS.tokenize(text, "text_encoder", {"zebra": 2}).vectors
    if "<" in text:
        assert [(w, i) for _, w, i in vectors] == [(w, i) for _, w, i in expected]
    else:
        assert list(vectors) == expected


def test_trigger_words_match_by_case_folding() -> None:
    vectors = PROMPTS.tokenize("a \u017ftyle", "text_encoder", {"style": 1}).vectors
    assert [word for _, word, _ in vectors] == ["style"]


def test_dropped_tokens_are_counted() -> None:
    tokens = PROMPTS.tokenize("star " * 80 + "zebra", "text_encoder", {"zebra": 3})
    assert tokens.dropped == 8
    assert tokens.vectors == ()
    assert tokens.ids[-1] == 49407
