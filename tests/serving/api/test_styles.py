"""Styles, hints and the prompt language, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from typer.testing import CliRunner

from serving.cli.main import app
from tests.support.platforms import Running, put_asset

PROMPT = {
    "prompt": "a small red star", "seed": 3, "steps": 2, "image_encoding": "png", "metadata": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('styles')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


def generate(http: httpx2.Client, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Return the first image, in base64, and the receipt. ``None`` leaves a field out."""
    body = {name: value for name, value in {**PROMPT, **changes}.items() if value is not None}
    answer = http.post("/generate/sdxl", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["images"][0]["image_b64"], answer.json()["receipt"]


def test_every_style_is_listed_and_a_preset_is_its_text(http: httpx2.Client) -> None:
    listed = http.get("/v1/styles").raise_for_status().json()["styles"]
    styles = {style["name"]: style for style in listed if style["asset_id"] is None}
    assert len(styles) == 78
    assert all("{prompt}" in style["prompt"] for style in styles.values())
    assert all(style["negative_prompt"] for style in styles.values() if style["name"] != "base")
    anime = styles["anime"]
    image, receipt = generate(http, style_preset="anime")
    assert receipt["styles"] == [{"name": "anime", "version": anime["version"]}]
    assert receipt["warnings"] == []
    text = anime["prompt"].replace("{prompt}", PROMPT["prompt"])
    written, _ = generate(http, prompt=text, negative_prompt=anime["negative_prompt"])
    assert written == image
    assert generate(http, style_preset="base")[0] == generate(http)[0]
    refused = http.post("/generate/sdxl", json={**PROMPT, "style_preset": "no-such"})
    assert refused.status_code == 422
    assert "GET /v1/styles" in refused.text


def test_an_own_style_is_an_asset(http: httpx2.Client, platform: Running) -> None:
    new = {"name": "house", "prompt": "{prompt} on a green background", "negative_prompt": "dark"}
    made = http.post("/v1/styles", json=new).raise_for_status().json()
    assert (made["version"], made["prompt"]) == (1, new["prompt"])
    image, receipt = generate(http, styles=["house", "anime"])
    assert [style["name"] for style in receipt["styles"]] == ["house", "anime"]
    assert generate(http, styles=[made["asset_id"], "anime"])[0] == image
    assert generate(http, styles=["anime", "house"])[0] != image
    # A new version changes what the name means; the old one is still there.
    changed = {**new, "prompt": "{prompt} on a blue background", "new_version": True}
    assert http.post("/v1/styles", json=changed).raise_for_status().json()["version"] == 2
    later, receipt = generate(http, styles=["house", "anime"])
    assert receipt["styles"][0] == {"name": "house", "version": 2}
    assert later != image
    assert generate(http, styles=["house@1", "anime"])[0] == image

    # OctoAI's clients, which know no styles, are not shown any.
    assert http.get("/v1/assets").json()["data"] == []
    listed = http.get("/v1/assets", params={"asset_type": "style"}).json()["data"]
    assert [asset["name"] for asset in listed] == ["house", "house"]
    other = {"Authorization": f"Bearer {platform.key('others')}"}
    body = {**PROMPT, "styles": ["styles:house"]}
    assert httpx2.post(f"{platform.url}/generate/sdxl", json=body, headers=other).status_code == 404
    share = {"visibility": "shared", "shared_with": ["others"]}
    http.patch(f"/v1/assets/{made['asset_id']}", json=share).raise_for_status()
    body["styles"] = ["styles:house@1"]
    shared = httpx2.post(f"{platform.url}/generate/sdxl", json=body, headers=other, timeout=60)
    assert shared.status_code == 200, shared.text

    renamed = http.patch(f"/v1/assets/{made['asset_id']}", json={"name": "anime"})
    assert renamed.status_code == 422
    hints = http.patch(f"/v1/assets/{made['asset_id']}", json={"hints": {"prompt": "x"}})
    assert hints.status_code == 422
    assert "make a new version" in hints.text
    http.delete(f"/v1/assets/{made['asset_id']}").raise_for_status()
    assert http.post("/generate/sdxl", json={**PROMPT, "styles": ["house@1"]}).status_code == 404
    http.post(f"/v1/assets/{made['asset_id']}/restore").raise_for_status()
    assert generate(http, styles=["house@1", "anime"])[0] == image


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/styles", {"name": "anime", "prompt": "x"}, "is a built-in style"),
        ("/v1/assets", {"name": "anime", "asset_type": "style"}, "is a built-in style"),
        ("/v1/assets", {"name": "own", "asset_type": "style"}, "needs hints"),
        ("/v1/assets", {"name": "o", "asset_type": "style", "hints": {"steps": 3}}, "needs hints"),
        (
            "/v1/assets",
            {"name": "own", "asset_type": "style", "hints": {"prompt": "x"}, "url": "https://a/b"},
            "has no file",
        ),
        ("/v1/assets", {"name": "o", "asset_type": "lora", "hints": {"sampler": "x"}}, "sampler"),
        ("/generate/sdxl", {"prompt": "x", "styles": ["commons:night"]}, "is a lora, not a style"),
        ("/generate/sdxl", {"prompt": "x", "styles": ["anime"] * 9}, "at most 8"),
        ("/generate/sdxl", {"prompt": "x", "clip_skip": 13}, "less than or equal to 12"),
        ("/generate/sdxl", {"prompt": "x", "prompt_syntax": "odd"}, "plain"),
    ],
)  # fmt: skip
def test_refusals(http: httpx2.Client, path: str, body: dict[str, Any], told: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 422
    assert told in answer.text


def test_hints_fill_what_the_request_leaves_out(
    http: httpx2.Client, sample_files: dict[str, Path]
) -> None:
    asset = put_asset(http, sample_files["lora_all"], "lora", "fast-lcm-4steps")
    guessed = {"sampler": "LCM", "steps": 4, "cfg_scale": 1.0}
    assert asset["hints"] == guessed
    assert asset["report"]["hints_evidence"].startswith("LCM: its name is")
    loras = {"fast-lcm-4steps": 1.0}
    image, receipt = generate(http, loras=loras, steps=None)
    assert receipt["hints"] == [
        {"field": name, "value": value, "asset": "fast-lcm-4steps"}
        for name, value in guessed.items()
    ]
    assert generate(http, loras=loras, **guessed)[0] == image
    explicit, receipt = generate(http, loras=loras, steps=2, sampler="K_EULER")
    assert [hint["field"] for hint in receipt["hints"]] == ["cfg_scale"]
    assert explicit == generate(http, loras=loras, steps=2, sampler="K_EULER", cfg_scale=1.0)[0]
    _, receipt = generate(http, loras=loras, asset_hints=False)
    assert receipt["hints"] == []

    own = {
        "sampler": "DDIM", "schedule": "trailing", "steps": 2, "width": 832, "height": 1216,
        "prompt": "a big {prompt}", "negative_prompt": "blue", "clip_skip": 3,
    }  # fmt: skip
    patched = http.patch("/v1/assets/fast-lcm-4steps", json={"hints": own}).raise_for_status()
    assert patched.json()["asset"]["hints"] == own
    image, receipt = generate(http, loras=loras, steps=None)
    assert {hint["field"]: hint["value"] for hint in receipt["hints"]} == own
    assert receipt["size"]["height"] > receipt["size"]["width"]
    written = {**own, "prompt": "a big a small red star"}
    assert generate(http, loras=loras, **written)[0] == image
    # The template's words are there already, and there is a negative prompt.
    _, receipt = generate(http, loras=loras, prompt="A big star", negative_prompt="")
    assert {"prompt", "negative_prompt"}.isdisjoint(hint["field"] for hint in receipt["hints"])
    # A sampler of the request's is not given the asset's schedule.
    _, receipt = generate(http, loras=loras, sampler="PNDM")
    assert {"sampler", "schedule"}.isdisjoint(hint["field"] for hint in receipt["hints"])
    again = http.patch("/v1/assets/fast-lcm-4steps", json={"hints": "auto"}).raise_for_status()
    assert again.json()["asset"]["hints"] == guessed


def test_the_prompt_language(http: httpx2.Client, sample_files: dict[str, Path]) -> None:
    put_asset(http, sample_files["lora_cross"], "lora", "soft")
    put_asset(http, sample_files["inversion"], "textual_inversion", "qneg")
    plain, receipt = generate(http)
    for prompt in (
        "a small (red:1.6) star",
        "a small red star BREAK a moon",
        "(a small red star:0.5)",
    ):
        image, receipt = generate(http, prompt=prompt)
        assert receipt["warnings"] == []
        assert image != plain
    assert generate(http, prompt="(a small red star:1.0)")[0] == plain

    tagged, receipt = generate(http, prompt="a small red star <lora:soft:0.5:0.9>")
    assert receipt["warnings"] == []
    weights = {"soft": {"unet": 0.9, "text_encoders": 0.5}}
    assert tagged == generate(http, loras=weights)[0]
    other, receipt = generate(http, prompt="a small red star, embedding:qneg")
    assert receipt["warnings"] == []
    named = {"prompt": "a small red star, qneg", "textual_inversions": {"qneg": "qneg"}}
    assert other == generate(http, **named)[0]
    missing = http.post("/generate/sdxl", json={**PROMPT, "prompt": "a <lora:no-such:1> star"})
    assert missing.status_code == 404
    assert "no-such" in missing.text
    many = "".join(f"<lora:l{index}:1>" for index in range(33))
    assert http.post("/generate/sdxl", json={**PROMPT, "prompt": many}).status_code == 422

    _, receipt = generate(http, prompt="a [red|green] star {a|b}", negative_prompt="<lora:soft:1>")
    warnings = " ".join(receipt["warnings"])
    for piece in ("[red|green]", "{a|b}", "negative prompt has no effect"):
        assert piece in warnings
    read, receipt = generate(http, prompt="a small (red:1.6) star", prompt_syntax="plain")
    assert receipt["warnings"] == []
    assert read not in (plain, generate(http, prompt="a small (red:1.6) star")[0])


def test_the_command_line(platform: Running, tmp_path: Path) -> None:
    runner = CliRunner()
    environment = {"AO_URL": platform.url, "AO_API_KEY": platform.key("styles-cli")}

    def call(*arguments: str, exit_code: int = 0) -> Any:
        result = runner.invoke(app, [*arguments, "--json"], env=environment)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    made = call("styles", "create", "ink", "--prompt", "{prompt}, ink", "--negative-prompt", "oil")
    assert (made["name"], made["version"]) == ("ink", 1)
    sheet = tmp_path / "styles.csv"
    sheet.write_text(
        "\ufeffname,prompt,negative_prompt\n"
        'My Look,"{prompt}, wide",""\nanime,x,\nink,"{prompt}, ink",\nOnly negative,,blurred\n',
        "utf-8",
    )
    rows = call("styles", "import", str(sheet), exit_code=1)
    assert [(row["line"], bool(row["error"])) for row in rows] == [
        (2, False), (3, True), (4, True), (5, False),
    ]  # fmt: skip
    own = [row["name"] for row in call("styles", "list") if row["asset_id"]]
    assert own == ["ink", rows[0]["name"], rows[3]["name"]]
    out = str(tmp_path / "p.webp")
    options = ["--style", "ink", "--steps", "1", "--seed", "1", "--out", out]
    small = ["--width", "72", "--height", "64"]
    told = call("generate", "a star", *options, *small, "--estimate")
    assert (told["evaluations"], told["size"]["width"]) == (1, 72)
    assert not Path(out).exists()
    receipt = call("generate", "a star", *options, *small)["receipt"]
    assert receipt["styles"] == [{"name": "ink", "version": 1}]
    with Image.open(out) as image:
        assert (image.format, image.size) == ("WEBP", (72, 64))
    hints = ["assets", "update", "ink", "--hints", '{"prompt": "{prompt}, brush"}']
    for arguments in (
        ["styles", "import", str(tmp_path / "none.csv")],
        ["styles", "import", out],
        hints,
    ):
        assert runner.invoke(app, arguments, env=environment).exit_code == 1
