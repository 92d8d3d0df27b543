"""Untrusted text affects neither rich's markup nor the terminal."""

from __future__ import annotations

import io
import sys

import pytest
import typer

from serving.cli.output import ApiFailure, clear_errors, show, show_one

UNTRUSTED = [
    "[red]x[/red]",
    "[/]",
    "[link=http://evil]a[/link]",
    "\x1b[31mred",
    "a\rb",
    "\ud800",
    "\x9b31m",
]


@pytest.mark.parametrize("text", UNTRUSTED)
def test_untrusted_text_is_escaped(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": text}], ("name",), as_json=False)
    show_one({}, text, as_json=False)
    with pytest.raises(typer.Exit), clear_errors():
        raise ApiFailure(text)
    out, err = capsys.readouterr()
    for printed in (out, err):
        assert "\x1b" not in printed
        assert "\x9b" not in printed
        assert "\r" not in printed
    if text.isprintable():
        assert out.count(text) == 2
        assert text in err


def test_json_output_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": "\ud800é"}], ("name",), as_json=True)
    assert capsys.readouterr().out.isascii()


def test_characters_that_stdout_cannot_encode_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    show_one({}, "héron", as_json=False)
    out.flush()
    assert out.buffer.getvalue() == b"h\\xe9ron\n"
