"""What strangers have written is shown, and steers neither rich nor the terminal."""

from __future__ import annotations

import io
import sys

import pytest
import typer

from serving.cli.output import ApiFailure, clear_errors, show, show_one

STRANGE = [
    "[red]x[/red]",
    "[/]",
    "[link=http://evil]a[/link]",
    "\x1b[31mred",
    "a\rb",
    "\ud800",
    "\x9b31m",
]


@pytest.mark.parametrize("text", STRANGE)
def test_a_table_shows_it_as_it_is_written(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": text}], ("name",), as_json=False)
    show_one({}, text, as_json=False)
    with pytest.raises(typer.Exit), clear_errors():
        raise ApiFailure(text)
    shown, wrong = capsys.readouterr()
    for each in (shown, wrong):
        assert "\x1b" not in each
        assert "\x9b" not in each
        assert "\r" not in each
    if text.isprintable():
        assert shown.count(text) == 2
        assert text in wrong


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": "\ud800é"}], ("name",), as_json=True)
    assert capsys.readouterr().out.isascii()


def test_a_terminal_without_unicode_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    show_one({}, "héron", as_json=False)
    out.flush()
    assert out.buffer.getvalue() == b"h\\xe9ron\n"  # type: ignore[attr-defined]
