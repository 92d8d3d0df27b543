"""Writes docs/files.md: ``python -m tests.support.file_list``.

A module's line is its docstring's first sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "files.md"
PACKAGES = ("assets", "orchestrator", "router", "serving", "benchmarks", "tests/support")
_HEAD = "# Files\n\nGenerated from the docstrings by `python -m tests.support.file_list`.\n"


def summary(path: Path) -> str:
    """Return a module's first sentence, or ""."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?!])\s", paragraph)[0]
    return re.sub(r":class:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", sentence).replace("|", "\\|")


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        paths = (ROOT / package).rglob("*.py")
        for path in sorted(paths, key=lambda path: (str(path.parent), path.name)):
            if path.name != "__init__.py":
                yield path


def document() -> str:
    parts = [_HEAD]
    for folder, paths in groupby(modules(), key=lambda path: path.parent):
        package = summary(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
        name = folder.relative_to(ROOT)
        parts.append(f"\n## {name}\n\n{package}\n\n| file | what |\n|---|---|\n")
        parts += [f"| `{path.name}` | {summary(path)} |\n" for path in paths]
    return "".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
