"""Other programs' prompt syntax is reported as plain text."""

from __future__ import annotations

import pytest

from serving.generation.prompt_syntax import unsupported_syntax


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a small (red:1.5) star", ["(red:1.5)"]),
        ("a (((red))) star", ["((red))"]),
        ("a red star <lora:outline:0.8>", ["<lora:outline:0.8>"]),
        ("<hypernet:x:1> a", ["<hypernet:x:1>"]),
        ("a small [red|green] star", ["[red|green]"]),
        ("a [red:green:0.5] star", ["[red:green:0.5]"]),
        ("a [dull] star", ["[dull]"]),
        ("a red star, embedding:lagoon", ["embedding:lagoon"]),
        ("a star BREAK a moon", ["BREAK"]),
        ("a {red|green} star", ["{red|green}"]),
        ("a (red)1.3 star, (big)++", ["(red)1.3", "(big)++"]),
        ("a __color__ star", ["__color__"]),
        ("(a:1.1), (b:0.9)", ["(a:1.1)", "(b:0.9)"]),
    ],
)
def test_unsupported_syntax_is_reported(prompt: str, pieces: list[str]) -> None:
    warnings = unsupported_syntax(prompt)
    assert [warning.split(" is read as text: ")[0] for warning in warnings] == pieces


@pytest.mark.parametrize(
    "prompt",
    ["", "a house (old)", "a house (old), by night (1999)", "C++ code", "a ratio of 16:9",
     "take a break", "snake_case__name", "an array a, b", "half-open [", "see: (this)"],
)  # fmt: skip
def test_plain_text_gives_no_warning(prompt: str) -> None:
    assert unsupported_syntax(prompt, None) == ()


def test_warnings_are_few_and_short_and_cover_every_prompt() -> None:
    many = " ".join(f"(w{index}:1.5)" for index in range(100))
    assert len(unsupported_syntax(many)) == 8
    (warning,) = unsupported_syntax(f"({'x' * 400}:1.5)")
    assert len(warning) < 120
    assert len(unsupported_syntax("(a:1.5)", "(b:1.5)", None, "(b:1.5)")) == 2
