"""Trigger words against an equivalent regular expression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.generation.words import split

LETTERS = "ab_ -<>é1İßſ"
WORDS = st.text(LETTERS, min_size=1, max_size=4).filter(lambda word: word == word.strip())


BEFORE, AFTER = r"(?<!\w)", r"(?!\w)"


def is_word(character: str) -> bool:
    return re.match(r"\w", character) is not None


def split_by_pattern(text: str, words: list[str]) -> list[tuple[str, bool]]:
    longest_first = sorted(words, key=len, reverse=True)
    alternatives = "|".join(
        "(" + BEFORE * is_word(word[0]) + re.escape(word) + AFTER * is_word(word[-1]) + ")"
        for word in longest_first
    )
    pattern = re.compile(alternatives)
    pieces, position = [], 0
    for match in pattern.finditer(text):
        if before := text[position : match.start()].strip():
            pieces.append((before, False))
        assert match.lastindex is not None
        pieces.append((longest_first[match.lastindex - 1], True))
        position = match.end()
    if rest := text[position:].strip():
        pieces.append((rest, False))
    return pieces


@given(st.text("ab_ -<>1", max_size=30), st.lists(WORDS, min_size=1, max_size=4, unique=True))
def test_matches_equal_those_of_a_pattern(text: str, words: list[str]) -> None:
    plain = [word for word in words if set(word) <= set("ab_ -<>1")]
    if plain:
        assert split(text, plain) == split_by_pattern(text, plain)


@given(st.text(LETTERS, max_size=30), st.lists(WORDS, max_size=4, unique=True))
def test_nothing_is_lost(text: str, words: list[str]) -> None:
    pieces = split(text, words)
    assert all(piece in words for piece, is_trigger in pieces if is_trigger)
    folded = re.sub(r"\s", "", "".join(piece for piece, _ in pieces)).casefold()
    assert folded == re.sub(r"\s", "", text).casefold()


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("a ZEBRA star", ["zebra"], [("a", False), ("zebra", True), ("star", False)]),
        ("zebras", ["zebra"], [("zebras", False)]),
        ("red panda", ["red", "red panda"], [("red panda", True)]),
        ("İ zebra", ["zebra"], [("İ", False), ("zebra", True)]),
        ("<zebra>", ["<zebra>"], [("<zebra>", True)]),
        ("x", [], [("x", False)]),
        ("", ["x"], []),
        ("a<zebra>,b", ["<zebra>"], [("a", False), ("<zebra>", True), (",b", False)]),
        ("かわいい猫sks犬", ["sks"], [("かわいい猫", False), ("sks", True), ("犬", False)]),
        ("白い猫と犬", ["猫"], [("白い", False), ("猫", True), ("と犬", False)]),
        ("sks가 있다", ["sks"], [("sks", True), ("가 있다", False)]),
        ("고양이가", ["고양이"], [("고양이가", False)]),
        ("ภาพแมวสวย", ["แมว"], [("ภาพ", False), ("แมว", True), ("สวย", False)]),
        ("кошкаsks", ["sks"], [("кошка", False), ("sks", True)]),
        ("кошка", ["ко"], [("кошка", False)]),
        ("cafe\u0301 cafe", ["cafe"], [("café", False), ("cafe", True)]),
        ("cafe\u0301", ["café"], [("café", True)]),
        ("पानी", ["पान"], [("पानी", False)]),
        ("sks_2", ["sks"], [("sks_2", False)]),
    ],
)
def test_examples(text: str, words: list[str], expected: list[tuple[str, bool]]) -> None:
    assert split(text, words) == expected


def test_no_regular_expression_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: object) -> None:
        raise AssertionError("compiled")

    for name in ("compile", "search", "match", "split", "finditer", "sub", "escape"):
        monkeypatch.setattr(re, name, compiled)
    assert split("a word", ["word"]) == [("a", False), ("word", True)]
