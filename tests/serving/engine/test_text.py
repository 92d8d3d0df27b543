"""The tokenizer against published files; chunks, weights and clip skip against A1111's rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.chunks import CHUNK_TOKENS, COMMA, MAX_CHUNKS, Chunk, Token, Unit, fit
from serving.engine.text import PromptTokenizer
from serving.engine.vocabulary import merges, vocabulary
from serving.generation.prompts import PromptPiece, parse
from serving.generation.styles import Style, styled_negative, styled_prompt
from tests.support.generation import changed, image_of, task_of

PROMPTS = PromptTokenizer()


def plain_ids(text: str) -> list[int]:
    return [token.id for token in PROMPTS.first_chunk(text, {})]


def vectors_in(text: str, sizes: dict[str, int]) -> list[tuple[int, str, int]]:
    chunk = PROMPTS.first_chunk(text, sizes)
    return [(at, *token.vector) for at, token in enumerate(chunk, start=1) if token.vector]


def test_vocabulary_is_the_published_one(real_data: Path) -> None:
    folder = real_data / "sdxl_tree" / "Juggernaut_XL_v9" / "tokenizer"
    assert vocabulary() == json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    assert list(merges()) == [line for line in lines if line]


def test_known_ids() -> None:
    chunk = PROMPTS.first_chunk("a photo of a cat", {})
    first = PROMPTS.ids(chunk, "text_encoder")
    assert first[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(first[7:]) == {49407}
    second = PROMPTS.ids(chunk, "text_encoder_2")
    assert set(second[7:]) == {0}
    assert len(first) == len(second) == 77
    assert plain_ids(",") == [COMMA]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a zebra star", [(2, "zebra", 0), (3, "zebra", 1)]),
        ("ZEBRA, star", [(1, "zebra", 0), (2, "zebra", 1)]),
        ("zebras and a zebra", [(5, "zebra", 0), (6, "zebra", 1)]),
        ("no such word", []),
    ],
)
def test_trigger_words_are_whole_words_in_any_case(
    text: str, expected: list[tuple[int, str, int]]
) -> None:
    assert vectors_in(text, {"zebra": 2}) == expected


def test_trigger_words_match_by_case_folding() -> None:
    assert [word for _, word, _ in vectors_in("a \u017ftyle", {"style": 1})] == ["style"]


def chunks_by_a1111(tokens: Sequence[int | None]) -> list[list[int]]:
    """A1111's rules, written down a second time; None is a BREAK."""
    chunks: list[list[int]] = []
    current: list[int] = []
    comma = -1
    for token in tokens:
        if token is None:
            chunks.append(current)
            current, comma = [], -1
            continue
        if token == COMMA:
            comma = len(current)
        elif len(current) == 75 and comma != -1 and len(current) - comma <= 20:
            chunks.append(current[: comma + 1])
            current, comma = current[comma + 1 :], -1
        if len(current) == 75:
            chunks.append(current)
            current, comma = [], -1
        current.append(token)
    if current or not chunks:
        chunks.append(current)
    return chunks


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, COMMA, COMMA, None]), max_size=400))
def test_chunks_are_a1111s(tokens: list[int | None]) -> None:
    sections: list[list[Unit]] = [[]]
    for token in tokens:
        if token is None:
            sections.append([])
        else:
            sections[-1].append(Unit((Token(token),)))
    fitted = fit(sections, limit=1000)
    assert [[token.id for token in chunk] for chunk in fitted.chunks] == chunks_by_a1111(tokens)
    assert fitted.dropped == 0


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=40),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_an_inversion_is_within_one_chunk(sizes: list[int], commas: list[bool]) -> None:
    units: list[Unit] = []
    for index, size in enumerate(sizes):
        units.append(Unit(tuple(Token(0, 1.0, (str(index), each)) for each in range(size))))
        if commas[index % len(commas)]:
            units.append(Unit((Token(COMMA),)))
    fitted = fit([units], limit=1000)
    assert all(len(chunk) <= CHUNK_TOKENS for chunk in fitted.chunks)
    together = [token for chunk in fitted.chunks for token in chunk]
    assert together == [token for unit in units for token in unit.tokens]
    for index, size in enumerate(sizes):
        within = [
            number
            for number, chunk in enumerate(fitted.chunks)
            if any(token.vector and token.vector[0] == str(index) for token in chunk)
        ]
        assert len(within) == 1 or size > CHUNK_TOKENS


def test_tokens_beyond_the_last_chunk_are_counted() -> None:
    text = "star " * (MAX_CHUNKS * CHUNK_TOKENS + 5) + "zebra"
    fitted = PROMPTS.tokenize(parse(text).sections, {"zebra": 3})
    assert len(fitted.chunks) == MAX_CHUNKS
    assert fitted.dropped == 8
    assert not any(token.vector for chunk in fitted.chunks for token in chunk)


def test_a_style_gives_way_and_the_users_words_stay() -> None:
    words = "star " * (MAX_CHUNKS * CHUNK_TOKENS - 4)
    style = Style("loud", "a {prompt} with one, two, three, four", "five, six")
    fitted = PROMPTS.tokenize(styled_prompt(words, [style], "weighted"), {})
    kept = [token.id for chunk in fitted.chunks for token in chunk]
    star = plain_ids("star")[0]
    assert kept.count(star) == MAX_CHUNKS * CHUNK_TOKENS - 4
    assert fitted.shortened == ("loud",)
    assert fitted.dropped == 0
    assert plain_ids("one")[0] in kept
    assert plain_ids("four")[0] not in kept
    negative = styled_negative(words + "moon " * 4, [style], "weighted")
    assert negative is not None
    fitted = PROMPTS.tokenize(negative, {})
    kept = [token.id for chunk in fitted.chunks for token in chunk]
    assert kept.count(star) == MAX_CHUNKS * CHUNK_TOKENS - 4
    assert fitted.dropped == 0


def test_many_phrases_of_styles_give_way_at_once() -> None:
    """Some 16,000 phrases; one by one would take minutes."""
    styles = [Style(f"s{index}", "{prompt}" + ", a" * 700) for index in range(24)]
    fitted = PROMPTS.tokenize(styled_prompt("star " * 500, styles, "weighted"), {})
    assert len(fitted.chunks) == MAX_CHUNKS
    assert fitted.dropped == 0
    kept = [token.id for chunk in fitted.chunks for token in chunk]
    assert kept.count(plain_ids("star")[0]) == 500
    assert len(kept) > MAX_CHUNKS * CHUNK_TOKENS - 40


def independently_weighted(engine: Any, chunks: Sequence[Chunk]) -> torch.Tensor:
    """transformers' encoders alone, a chunk at a time, with A1111's arithmetic in float64."""
    found = []
    text = engine.prompts.text
    for chunk in chunks:
        weights = torch.ones(77, dtype=torch.float64)
        for position, token in enumerate(chunk, start=1):
            weights[position] = token.weight
        states = []
        for component, module in text._modules.items():
            ids = torch.tensor([PROMPTS.ids(chunk, component)])
            hidden = module(ids, output_hidden_states=True).hidden_states[-2].double()[0]
            weighed = hidden * weights[:, None]
            states.append(weighed * (hidden.mean() / weighed.mean()))
        found.append(torch.cat(states, dim=1))
    return torch.cat(found)


@pytest.fixture
def engine(bench: Any) -> Any:
    return bench.engine()


PROMPT = "a (small:1.3) [red] star, " + "a big blue ring, " * 24 + "BREAK (a moon)"


@torch.inference_mode()
def test_weights_are_those_of_an_independent_computation(engine: Any) -> None:
    sections = parse(PROMPT).sections
    wording = {"text_encoder": sections, "text_encoder_2": sections}
    encoded = engine.prompts.text.encode(wording, {})
    chunks = PROMPTS.tokenize(sections, {}).chunks
    assert len(chunks) == encoded.embeddings.chunks == 3
    expected = independently_weighted(engine, chunks)
    found = encoded.embeddings.context[0].double()
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5
    first = PROMPTS.ids(chunks[0], "text_encoder_2")
    pooled = engine.prompts.text._modules["text_encoder_2"](torch.tensor([first])).text_embeds
    assert torch.allclose(encoded.embeddings.pooled, pooled, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_clip_skip_is_a1111s(engine: Any) -> None:
    """1 and 2 are SDXL's own layer; n is the n-th last."""
    sections = parse("a red star").sections
    wording = {"text_encoder": sections, "text_encoder_2": sections}
    text = engine.prompts.text
    chunk = PROMPTS.tokenize(sections, {}).chunks[0]
    own = text.encode(wording, {}).embeddings.context
    for clip_skip in (1, 2, 3, 5):
        encoded = text.encode(wording, {}, clip_skip)
        states = []
        for component, module in text._modules.items():
            ids = torch.tensor([PROMPTS.ids(chunk, component)])
            output = module(ids, output_hidden_states=True)
            states.append(output.hidden_states[-max(clip_skip, 2)])
        assert torch.equal(encoded.embeddings.context, torch.cat(states, dim=-1))
        assert torch.equal(encoded.embeddings.context, own) == (clip_skip <= 2)
    assert text.encode(wording, {}, 12).warnings == ()
    (warning,) = text.encode(wording, {}, 13).warnings
    assert "12 layers of text_encoder" in warning


def test_the_shorter_prompt_is_padded_with_empty_chunks(engine: Any) -> None:
    task = task_of("r", engine.base, "a star", 64, 64, (7,), negative_prompt="blurred, " * 50)
    prepared = engine.prepare(task.recipe)
    try:
        positive, negative, warnings = engine.prompts.encode(prepared, task)
        short, _, _ = engine.prompts.encode(prepared, changed(task, negative_prompt="blurred"))
        empty, _, _ = engine.prompts.encode(prepared, changed(task, prompt="", negative_prompt="a"))
    finally:
        prepared.release()
    assert positive.chunks == negative.chunks == 2
    assert torch.equal(positive.context, torch.cat([short.context, empty.context], dim=1))
    assert torch.equal(positive.pooled, short.pooled)
    assert warnings == []


def test_what_changes_an_image_and_what_does_not(engine: Any) -> None:
    task = task_of("r", engine.base, "a red star", 64, 64, (7,), steps=2, encoding="png")
    own = image_of(engine, task)
    for same in (
        {"prompt": "(a red star:1)"},
        {"clip_skip": 2},
        {"clip_skip": 1},
        {"syntax": "plain"},
        {"styles": (Style("base"),)},
    ):
        assert image_of(engine, changed(task, **same)) == own, same
    images = [own] + [
        image_of(engine, changed(task, **other))
        for other in (
            {"prompt": "a (red:1.5) star"},
            {"prompt": "a (red:1.5) star", "syntax": "plain"},
            {"prompt": "a red BREAK star"},
            {"clip_skip": 3},
            {"styles": (Style("big", "a big {prompt}"),)},
            {"styles": (Style("not", "{prompt}", "red"),)},
        )
    ]
    assert len(set(images)) == len(images)


def test_pieces_of_a_style_are_marked() -> None:
    (section,) = styled_prompt("a star", [Style("s", "big {prompt}, red, (blue:1.2)")], "weighted")
    assert section == (
        PromptPiece("big", 1.0, "s"), PromptPiece("a star"), PromptPiece(",", 1.0, "s"),
        PromptPiece("red,", 1.0, "s"), PromptPiece("blue", 1.2, "s"),
    )  # fmt: skip


def test_a_templates_weight_and_breaks_are_kept() -> None:
    style = Style("s", "oil BREAK ({prompt}:1.5), dark [(x)]")
    sections = styled_prompt("a (cat:2) BREAK dog", [style], "weighted")
    assert sections == (
        (PromptPiece("oil", 1.0, "s"),),
        (PromptPiece("a", 1.5), PromptPiece("cat", 3.0)),
        (
            PromptPiece("dog", 1.5),
            PromptPiece(",", 1.0, "s"),
            PromptPiece("dark x", 1.0, "s"),
        ),
    )
    assert styled_prompt("a", [Style("s", "{prompt} {prompt}")], "weighted") == (
        (PromptPiece("a"), PromptPiece("{prompt}", 1.0, "s")),
    )
    (section,) = styled_prompt("a", [Style("s", "<lora:{prompt}:1> b")], "weighted")[-1:]
    assert section[-1] == PromptPiece("a")
