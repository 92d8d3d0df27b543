"""The prompt language: what is understood, and warnings of what is not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assets.selection import AssetSelection
from serving.generation.contract import GenerationParams
from serving.generation.prompt_assets import with_prompt_assets
from serving.generation.prompts import LoraTag, PromptPiece, parse

A, B = 1.1, 1 / 1.1


def pieces_of(prompt: str) -> list[tuple[str, float] | str]:
    """Return pieces with rounded weights, and "BREAK" between sections."""
    found: list[tuple[str, float] | str] = []
    for index, section in enumerate(parse(prompt).sections):
        if index:
            found.append("BREAK")
        found += [(piece.text, round(piece.weight, 4)) for piece in section]
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red star", [("a red star", 1)]),
        ("a (red:1.5) star", [("a", 1), ("red", 1.5), ("star", 1)]),
        ("a (((red))) star", [("a", 1), ("red", A**3), ("star", 1)]),
        ("a [dull] star", [("a", 1), ("dull", B), ("star", 1)]),
        ("[[dull]]", [("dull", B * B)]),
        ("(a (b:1.5))", [("a", A), ("b", 1.5 * A)]),
        ("((a:1.2):0.5)", [("a", 0.6)]),
        ("(a [b) c]", [("a", A), ("b", 1), ("c", B)]),
        ("(a", [("a", A)]),
        ("a) b]", [("a) b]", 1)]),
        ("[a (b", [("a", B), ("b", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("(a:b)", [("a:b", A)]),
        ("(a:1.2.3)", [("a:1.2.3", A)]),
        ("(a:)", [("a:", A)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:+1.3)", [("a", 1.3)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:0)", [("a", 0)]),
        ("()", []),
        ("", []),
        ("(a:1.3)(b:1.3) c", [("ab", 1.3), ("c", 1)]),
        (r"a \(b\) \[c\]", [("a (b) [c]", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        (r"a \\ b \c", [("a \\ b c", 1)]),
        (r"\<lora:x:1\>", [("<lora:x:1>", 1)]),
        ("a BREAK b", [("a", 1), "BREAK", ("b", 1)]),
        ("(a BREAK b:1.2)", [("a", 1.2), "BREAK", ("b", 1.2)]),
        ("a BREAK", [("a", 1), "BREAK"]),
        ("aBREAK BREAKs break", [("aBREAK BREAKs break", 1)]),
        ("<lora:x:0.8> a", [("a", 1)]),
        ("a<lora:x:0.8>b", [("ab", 1)]),
        ("(<lora:x:0.8>:1.2)", []),
        ("a embedding:neg, b", [("a  neg , b", 1)]),
        ("(embedding:neg:1.2)", [("neg", 1.2)]),
        ("embedding:octoai:neg", [("octoai:neg", 1)]),
        ("a house (old)", [("a house", 1), ("old", A)]),
        ("smile :) and (a :) b", [("smile :) and", 1), ("a :", A), ("b", 1)]),
        ("C++ (16:9)", [("C++", 1), ("16", 9)]),
        ("猫 (赤い:1.4) 犬", [("猫", 1), ("赤い", 1.4), ("犬", 1)]),
        ("(a,b:1.2),(c:0.9)", [("a,b", 1.2), (",", 1), ("c", 0.9)]),
        ("(((a:1.5)))", [("a", 1.5 * A * A)]),
        ("(a:1e3)", [("a:1e3", A)]),
        ("(a\nb:1.2)", [("a\nb", 1.2)]),
        ("{a}", [("{a}", 1)]),
        ("(a:2)(b)", [("a", 2), ("b", A)]),
    ],
)
def test_weights_brackets_and_breaks(
    prompt: str, expected: Sequence[tuple[str, float] | str]
) -> None:
    rounded = [each if isinstance(each, str) else (each[0], round(each[1], 4)) for each in expected]
    assert pieces_of(prompt) == rounded
    assert parse(prompt).warnings == ()


def lora(name: str, weight: float, text_weight: float) -> LoraTag:
    return LoraTag(name, weight, text_weight)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<lora:outline:0.8>", lora("outline", 0.8, 0.8)),
        ("<lora:outline>", lora("outline", 1, 1)),
        ("<lora:octoai:outline:0.8>", lora("octoai:outline", 0.8, 0.8)),
        ("<lora:octoai:outline>", lora("octoai:outline", 1, 1)),
        ("<lora:outline@2:0.5:0.9>", lora("outline@2", 0.9, 0.5)),
        ("<lora:outline:te=0.3:unet=0.9>", lora("outline", 0.9, 0.3)),
        ("<lora:outline:0.4:unet=0.9>", lora("outline", 0.9, 0.4)),
        ("<lora:8:0.5>", lora("8", 0.5, 0.5)),
        ("<lyco:outline:-1>", lora("outline", -1, -1)),
        ("<lora:影 絵:0.7>", lora("影 絵", 0.7, 0.7)),
    ],
)
def test_loras(prompt: str, expected: LoraTag) -> None:
    """As in A1111, the first number is the text encoders' and the second the UNet's."""
    assert parse(prompt).loras == (expected,)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("<hypernet:x:1> a", ["<hypernet:x:1> is left out"]),
        ("<lora:a:1> <lora:a:0.5>", ["<lora:a:0.5> is left out"]),
        ("<lora:a:dyn=3>", ["<lora:a:dyn=3> is left out"]),
        ("a small [red|green] star", ["[red|green] is read as text"]),
        ("a [red:green:0.5] star", ["[red:green:0.5] is read as text"]),
        ("a [red:0.5] star", ["[red:0.5] is read as text"]),
        ("a {red|green} star", ["{red|green} is read as text"]),
        ("a (red)1.3 star, (big)++", ["(red)1.3 is read as text", "(big)++ is read as text"]),
        ("a __color__ star", ["__color__ is read as text"]),
        ("a star AND a moon :0.5", ["AND is read as text"]),
        ("(a:11)", ["weights beyond 10"]),
        ("(" * 100 + "a", ["brackets within 64", "weights beyond 10"]),
    ],
)
def test_what_is_not_understood_is_a_warning(prompt: str, pieces: list[str]) -> None:
    warnings = parse(prompt).warnings
    assert len(warnings) == len(pieces)
    for warning, piece in zip(warnings, pieces, strict=True):
        assert warning.startswith(piece)


@pytest.mark.parametrize(
    "prompt",
    ["", "a house (old), by night (1999)", "C++ code", "a ratio of 16:9", "take a break",
     "snake_case__name", "an array a, b", "half-open [", "see: (this)"],
)  # fmt: skip
def test_plain_text_gives_no_warning(prompt: str) -> None:
    assert parse(prompt).warnings == ()


def test_warnings_are_few_and_short() -> None:
    many = " ".join(f"{{w{index}|x}}" for index in range(100))
    assert len(parse(many).warnings) == 8
    (warning,) = parse(f"{{{'x' * 400}|y}}").warnings
    assert len(warning) < 130


def test_plain_syntax_is_no_syntax() -> None:
    prompt = r"a (red:1.5) [star] \( <lora:x:1> BREAK {a|b}"
    parsed = parse(prompt, "plain")
    assert parsed.sections == ((PromptPiece(prompt),),)
    assert not parsed.loras
    assert not parsed.warnings


def weights_by_a1111(text: str) -> list[tuple[str, float]]:
    """A1111's arithmetic of brackets, written down a second time: (character, weight)."""
    pattern = re.compile(
        r"\\\(|\\\)|\\\[|\\\]|\\\\|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:"
    )
    found: list[list[str | float]] = []
    rounds: list[int] = []
    squares: list[int] = []

    def multiply(begin: int, factor: float) -> None:
        for each in found[begin:]:
            each[1] = float(each[1]) * factor

    for match in pattern.finditer(text):
        token, weight = match[0], match[1]
        if token.startswith("\\"):
            found.append([token[1:], 1.0])
        elif token == "(":
            rounds.append(len(found))
        elif token == "[":
            squares.append(len(found))
        elif weight is not None and rounds:
            multiply(rounds.pop(), float(weight))
        elif token == ")" and rounds:
            multiply(rounds.pop(), 1.1)
        elif token == "]" and squares:
            multiply(squares.pop(), 1 / 1.1)
        else:
            found.append([token, 1.0])
    for begin in rounds:
        multiply(begin, 1.1)
    for begin in squares:
        multiply(begin, 1 / 1.1)
    return [
        (character, round(max(-10.0, min(10.0, float(weight))), 6))
        for piece, weight in found
        for character in str(piece)
        if not character.isspace()
    ]


@given(st.text("ab,()[]: 12.\\", max_size=40))
@example("((a:1.5) [b) c] d:2)")
def test_weights_equal_an_independent_computation(prompt: str) -> None:
    parsed = parse(prompt)
    if parsed.warnings:  # editing, which A1111 reads beforehand
        return
    found = [
        (character, round(piece.weight, 6))
        for piece in parsed.sections[0]
        for character in piece.text
        if not character.isspace()
    ]
    assert found == weights_by_a1111(prompt)


@given(st.text(max_size=200))
@example("\\")
@example("<lora:")
@example("embedding:" + "a" * 200)
def test_any_text_is_a_prompt(prompt: str) -> None:
    parsed = parse(prompt)
    assert parsed.sections
    assert all(-10 <= piece.weight <= 10 for each in parsed.sections for piece in each)
    assert len(parsed.warnings) <= 8


@given(st.lists(st.sampled_from(
    ["(", ")", "[", "]", ":1.2)", "<lora:", ":", ">", "embedding:", "BREAK", "{", "|", "}", "\\",
     "__", "a", " ", "0.5"]
), max_size=60).map("".join))  # fmt: skip
def test_any_syntax_is_a_prompt(prompt: str) -> None:
    assert parse(prompt).sections


@pytest.mark.parametrize(
    "prompt",
    ["[:" + "1" * 9_990, ":" + "1" * 9_990, "(a:" + " " * 9_990, "[" + ":" * 9_990, "(" * 9_990,
     "(a)" + "1" * 9_990, "{" + "|" * 9_990, "embedding:" + "a" * 9_990, "<lora:" * 1_600],
)  # fmt: skip
def test_hostile_prompts_are_fast(prompt: str) -> None:
    """Quadratic time would be seconds for each, ten times over."""
    for _ in range(10):
        assert parse(prompt).sections


def test_prompts_add_assets_and_fields_win() -> None:
    params = GenerationParams(
        prompt="<lora:a:0.5> <lora:b:0.2:0.9> embedding:n", negative_prompt="<lora:c:1> embedding:m"
    )
    selection = AssetSelection(loras={"a": 1.0}, inversions={"n": "word"})
    changed, warnings = with_prompt_assets(selection, params)
    assert changed.loras == {"a": 1.0, "b": 0.9}
    assert changed.lora_text_weights == {"b": 0.2}
    assert changed.inversions == {"n": "word", "m": "m"}
    assert [warning.split(" ")[0] for warning in warnings] == ["<lora:a>", "a", "embedding:n"]
