"""Whether two commits generate the same images: the demonstration's, and random recipes.

Each commit serves HTTP from a worktree with its own environment. Bits differ between CPUs: compare
within one run only.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from PIL import Image

from benchmarks.document import Document
from serving.cli.client import Client
from serving.cli.demo import panels, request_of, upload_private
from serving.cli.output import ApiFailure
from serving.generation.samplers import Sampler
from serving.generation.sizes import WIRE_SIZES
from serving.miniature.catalogue import CATALOGUE
from serving.settings import Settings
from tests.support.servers import clean_environment, end_serving, free_port, start_serving

ROOT = Path(__file__).parents[1]
TENANT = "same"
RANDOM = 50


@dataclass(frozen=True, slots=True)
class ServedCommit:
    """A commit that serves, and its tenant's private LoRA."""

    commit: str
    client: Client
    private_id: str


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of ``commit`` with its own Makefile's environment."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        make = ["make", "--quiet", f"PYTHON={sys.executable}", ".venv/installed"]
        subprocess.run(make, cwd=folder, check=True, stdout=sys.stderr, env=clean_environment())
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def serving(commit: str, folder: Path) -> Iterator[ServedCommit]:
    """Serve ``commit`` on one replica with the miniature."""
    with checkout(commit, folder / "checkout") as tree:
        settings = Settings(
            data_dir=folder / "data", host_dir=folder / "host", port=free_port(), replicas=1
        )
        process = start_serving(settings, folder / "log", "--in-process", checkout=tree)
        try:
            with Client(settings.resolved_public_url, key(tree, settings)) as client:
                yield ServedCommit(commit, client, upload_private(client))
        finally:
            end_serving(process)


def key(tree: Path, settings: Settings) -> str:
    """Create the tenant and return its API key."""
    command = [str(tree / ".venv" / "bin" / "asset-orchestrator")]
    environment = {**clean_environment(), **settings.to_environment()}
    run: Any = {"check": True, "cwd": tree, "env": environment, "stdout": subprocess.PIPE}
    subprocess.run([*command, "tenants", "create", TENANT], **run)
    created = subprocess.run([*command, "keys", "create", TENANT, "--json"], **run)
    return str(json.loads(created.stdout)["key"])


def random_request(rng: random.Random) -> Document:
    """A random request. ``my-outline`` is the private LoRA."""

    def names(kind: str) -> list[str]:
        return [f"commons:{entry.name}" for entry in CATALOGUE if entry.kind == kind]

    loras = [*names("lora"), "my-outline"]
    words = {name: name.removeprefix("commons:") for name in names("textual_inversion")}
    used = rng.sample(sorted(words), rng.randint(0, len(words)))
    width, height = rng.choice(WIRE_SIZES)
    request = {
        "prompt": " ".join(
            ["a", rng.choice(("red", "green")), "star", *(words[name] for name in used)]
        ),
        "negative_prompt": rng.choice((None, "a moon")),
        "loras": {
            name: round(rng.uniform(-1.0, 1.5), 2)
            for name in rng.sample(loras, rng.randint(0, len(loras)))
        },
        "textual_inversions": {name: words[name] for name in used},
        "checkpoint": rng.choice((None, *names("checkpoint"))),
        "vae": rng.choice((None, *names("vae"))),
        "sampler": rng.choice(get_args(Sampler)),
        "steps": rng.randint(1, 8),
        "cfg_scale": round(rng.uniform(1.0, 9.0), 1),
        "num_images": rng.randint(1, 3),
        "seed": rng.randrange(2**32),
        "width": width,
        "height": height,
        "image_encoding": rng.choice(("png", "jpeg")),
    }
    return {name: value for name, value in request.items() if value is not None}


def images(endpoint: ServedCommit, request: Document) -> list[bytes] | str:
    """The images' pixels, or the error that answers the request."""
    try:
        answer = endpoint.client.generate(dict(request))
    except ApiFailure as failure:
        return str(failure)
    return [pixels(base64.b64decode(image["image_b64"])) for image in answer["images"]]


def pixels(file: bytes) -> bytes:
    """Without metadata, which tells a commit's version."""
    with Image.open(io.BytesIO(file)) as image:
        return bytes(image.convert("RGB").tobytes())


def compare(endpoints: Sequence[ServedCommit], seed: int, count: int) -> Document:
    """Send every request to both; return counts and differences."""
    result: Document = {"old": endpoints[0].commit, "new": endpoints[1].commit}
    rng = random.Random(seed)
    titles = [panel.title for panel in panels("")]
    requests: dict[str, Sequence[Document]] = {
        "demonstration": [{} for _ in titles],
        "random": [random_request(rng) for _ in range(count)],
    }
    for name, group in requests.items():
        different: list[Document] = []
        total = 0
        for index, request in enumerate(group):
            answers = []
            for each in endpoints:
                body = request or request_of(panels(each.private_id)[index])
                answers.append(images(each, body))
            old, new = answers
            if old != new or isinstance(old, str):
                errors = [answer for answer in answers if isinstance(answer, str)]
                different.append({"request": request or titles[index], "errors": errors})
            else:
                total += len(old)
            print(f"\r{name}: {index + 1} of {len(group)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        result[name] = {"requests": len(group), "images": total, "different": different}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks same", description=__doc__)
    parser.add_argument("old", help="a commit, branch or tag")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--random", type=int, default=RANDOM, help="random recipes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        endpoints = []
        for name in ("old", "new"):
            (own := Path(folder) / name).mkdir()
            endpoints.append(stack.enter_context(serving(getattr(arguments, name), own)))
        result = compare(endpoints, arguments.seed, arguments.random)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name in ("demonstration", "random"):
            group = result[name]
            equal = group["requests"] - len(group["different"])
            print(
                f"{name}: {equal} of {group['requests']} requests equal, {group['images']} images"
            )
    if any(result[name]["different"] for name in ("demonstration", "random")):
        raise SystemExit("the commits generate different images or fail; --json lists the requests")
