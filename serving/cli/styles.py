"""``asset-orchestrator styles``: a tenant's styles over HTTP."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.client import client_from_environment
from serving.cli.json_body import Json
from serving.cli.naming import plain_name
from serving.cli.options import AsJson, Key, Url
from serving.cli.output import ApiFailure, clear_errors, show, show_one

styles = typer.Typer(help="Styles: templates around prompts (over HTTP).", no_args_is_help=True)

NewVersion = Annotated[bool, typer.Option("--new-version", help="Change an existing style.")]


@styles.command("list")
def list_styles(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the built-in styles and your own."""
    with clear_errors(), client_from_environment(url, key) as client:
        rows: list[Json] = []
        after = ""
        while True:
            page = client.call("GET", "/v1/styles", params={"after": after})
            rows += page["styles"]
            if page["next"] is None:
                break
            after = page["next"]
        show(rows, ("name", "version", "prompt", "negative_prompt"), as_json)


@styles.command("create")
def create_style(
    name: str,
    prompt: Annotated[str, typer.Option(help="{prompt} is the place of the prompt.")] = "{prompt}",
    negative_prompt: str = "",
    new_version: NewVersion = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Create a style of your organisation, usable at once."""
    body = {"name": name, "prompt": prompt, "negative_prompt": negative_prompt}
    with clear_errors(), client_from_environment(url, key) as client:
        made = client.call("POST", "/v1/styles", json={**body, "new_version": new_version})
        show_one(made, f"{made['name']} version {made['version']}", as_json)


@styles.command("import")
def import_styles(
    file: Annotated[
        Path, typer.Argument(help="A1111's styles.csv: name, prompt, negative_prompt.")
    ],
    new_version: NewVersion = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Create a style of each row of A1111's styles.csv; rows that cannot be are told."""
    with clear_errors(), client_from_environment(url, key) as client:
        rows: list[Json] = []
        for number, row in enumerate(_rows(file), start=2):
            prompt, negative = row.get("prompt") or "", row.get("negative_prompt") or ""
            body = {
                "name": plain_name(row.get("name") or ""),
                "prompt": prompt or "{prompt}",
                "negative_prompt": negative,
                "new_version": new_version,
            }
            try:
                made = client.call("POST", "/v1/styles", json=body)
                rows.append({"line": number, **made, "error": ""})
            except ApiFailure as failure:
                rows.append({"line": number, "name": body["name"], "error": str(failure)})
        show(rows, ("line", "name", "version", "error"), as_json)
    raise typer.Exit(any(row["error"] for row in rows))


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ApiFailure(f"{file} cannot be read: {error}") from None
    reader = csv.DictReader(text.splitlines(keepends=True))
    if "name" not in (reader.fieldnames or ()):
        raise ApiFailure(f"{file} has no column 'name': A1111's styles.csv begins with it")
    return [row for row in reader if (row.get("name") or "").strip()]
