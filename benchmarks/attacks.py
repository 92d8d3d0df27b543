"""Generation time of one tenant with and without another's attack on the gateway.

    python -m benchmarks attacks                        # about two minutes
    python -m benchmarks attacks --before CHECKOUT      # also an older checkout

In one process: the gateway takes time from the engine. The attacker has low priority: a real one
takes no CPU time from the platform.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from benchmarks.document import Document
from serving.settings import Settings
from tests.support.servers import await_port, clean_environment, end_serving, free_port

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "attacks.json"
_LONGEST_S = 20.0
_IMAGE = {"prompt": "a small red star", "steps": 16, "seed": 7}


def ask(http: httpx2.Client, method: str, path: str, **sent: Any) -> None:
    with suppress(httpx2.HTTPError):
        http.request(method, path, **sent)


def wrong_elements(size: int) -> bytes:
    return b'{"prompt":"x","seed":[' + b'"",' * (size // 3) + b'""]}'


def long_bodies_without_a_key(http: httpx2.Client, _key: str) -> None:
    ask(http, "POST", "/generate", content=wrong_elements(1 << 20), headers=_JSON)


def wrong_bodies_with_a_key(http: httpx2.Client, key: str) -> None:
    headers = {**_JSON, "Authorization": f"Bearer {key}"}
    ask(http, "POST", "/generate/sdxl", content=wrong_elements(900_000), headers=headers)


def wrong_keys(http: httpx2.Client, _key: str) -> None:
    headers = {"Authorization": f"Bearer ao_{os.urandom(5).hex()}_{'x' * 32}"}
    ask(http, "GET", "/v1/assets", headers=headers)


def searches_of_many_words(http: httpx2.Client, key: str) -> None:
    query = {"is_public": "true", "q": " ".join(f"w{index}" for index in range(60))}
    ask(http, "GET", "/v1/assets", params=query, headers={"Authorization": f"Bearer {key}"})


def long_trigger_words(http: httpx2.Client, key: str) -> None:
    body = {"prompt": "x", "steps": 1, "textual_inversions": {"commons:lagoon": "x" * 500_000}}
    ask(http, "POST", "/generate/sdxl", json=body, headers={"Authorization": f"Bearer {key}"})


def probes(http: httpx2.Client, _key: str) -> None:
    for path in ("/metrics", "/readyz", "/v1/pools"):
        ask(http, "GET", path)


def bodies_that_stop_short(http: httpx2.Client, _key: str) -> None:
    _half(http, b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 15000000\r\n\r\n", 4 << 20)


def heads_without_an_end(http: httpx2.Client, _key: str) -> None:
    _half(http, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", 8 << 20)


def _half(http: httpx2.Client, begin: bytes, more_bytes: int) -> None:
    with (
        suppress(OSError),
        socket.create_connection((http.base_url.host, http.base_url.port)) as connection,
    ):
        connection.settimeout(5)
        connection.sendall(begin)
        for _ in range(more_bytes >> 16):
            connection.sendall(b"a" * 65_536)


_JSON = {"Content-Type": "application/json"}
ATTACKS: Mapping[str, Callable[[httpx2.Client, str], None]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        long_bodies_without_a_key,
        wrong_bodies_with_a_key,
        wrong_keys,
        searches_of_many_words,
        long_trigger_words,
        probes,
        bodies_that_stop_short,
        heads_without_an_end,
    )
}


def attack(name: str, url: str, key: str) -> None:
    """Attack over two connections until killed."""
    os.nice(19)

    def repeat() -> None:
        with httpx2.Client(base_url=url, timeout=120) as http:
            while True:
                ATTACKS[name](http, key)

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def platform(checkout: Path, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Run a checkout's platform; yield its URL and two tenants' keys."""
    settings = Settings(data_dir=folder, port=free_port(), replicas=1, host_dir=folder / "host")
    environment = {**clean_environment(), **settings.to_environment(), "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "serving.cli.main"]

    def run(*arguments: str) -> Any:
        done = subprocess.run(
            [*command, *arguments], cwd=checkout, env=environment, check=True, capture_output=True
        )
        return json.loads(done.stdout)

    keys = []
    for tenant in ("other", "attacker"):
        run("tenants", "create", tenant, "--json")
        keys.append(run("keys", "create", tenant, "--json")["key"])
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "serve", "--in-process"], cwd=checkout, env=environment,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        await_port(process, settings.port, timeout_s=120)
        yield settings.resolved_public_url, keys
    finally:
        end_serving(process)


def image_s(url: str, key: str) -> float:
    began = time.perf_counter()
    headers = {"Authorization": f"Bearer {key}"}
    with suppress(httpx2.TimeoutException):  # counts as _LONGEST_S
        answer = httpx2.post(
            f"{url}/generate/sdxl", json=_IMAGE, headers=headers, timeout=_LONGEST_S
        )
        answer.raise_for_status()
    return time.perf_counter() - began


def beside(name: str, url: str, keys: list[str], images: int) -> tuple[list[float], float]:
    """Return seconds of each image, and of the slowest probe."""
    command = [sys.executable, "-m", "benchmarks", "attacks", "--attack", name, url, keys[1]]
    attacking = subprocess.Popen(command, cwd=ROOT)
    try:
        time.sleep(2)
        return [image_s(url, keys[0]) for _ in range(images)], _probe_s(url)
    finally:
        attacking.kill()
        attacking.wait()


def _probe_s(url: str) -> float:
    slowest = 0.0
    for _ in range(10):
        began = time.perf_counter()
        with suppress(httpx2.TimeoutException):
            httpx2.get(f"{url}/healthz", timeout=_LONGEST_S)
        slowest = max(slowest, time.perf_counter() - began)
        if slowest > _LONGEST_S:
            break
    return slowest


def recover(url: str) -> None:
    """Wait until the attack's requests are worked off."""
    while True:
        began = time.perf_counter()
        with suppress(httpx2.HTTPError):
            httpx2.get(f"{url}/healthz", timeout=300)
            if time.perf_counter() - began < 0.1:
                break
    time.sleep(2)


def measure(
    checkouts: Mapping[str, Path], images: int, attacks: Sequence[str]
) -> dict[str, Document]:
    results: dict[str, Document] = {name: {} for name in checkouts}
    with ExitStack() as stack:
        running = {}
        for name, checkout in checkouts.items():
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="attacks-")))
            url, keys = running[name] = stack.enter_context(platform(checkout, folder))
            for _ in range(5):
                image_s(url, keys[0])
        for attack_name in attacks:
            for name, (url, keys) in running.items():
                alone = [image_s(url, keys[0]) for _ in range(images)]
                attacked, probe_s = beside(attack_name, url, keys, images)
                ratio = median(attacked) / median(alone)
                print(
                    f"{name:7} {attack_name:28} {ratio:7.2f} x  /healthz {probe_s * 1e3:6.0f} ms",
                    flush=True,
                )
                results[name][attack_name] = {
                    "alone_ms": median(alone) * 1e3,
                    "beside_ms": median(attacked) * 1e3,
                    "ratio": ratio,
                    "slowest_probe_ms": probe_s * 1e3,
                }
                recover(url)
    return results


def table(result: Document) -> str:
    """Return docs/security.md's table."""
    names = [name for name in ("before", "now") if name in result]
    heads = [f"{name} | probe, ms" for name in names]
    lines = [f"| beside | {' | '.join(heads)} |", "|---|" + "---|---|" * len(names)]
    for attack_name in result["now"]:
        cells = []
        for name in names:
            row = result[name][attack_name]
            cells += [f"{row['ratio']:.2f} x", f"{row['slowest_probe_ms']:.0f}"]
        lines.append(f"| {attack_name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks attacks")
    parser.add_argument("--before", type=Path, help="an older checkout to measure as well")
    parser.add_argument(
        "--only", nargs="+", choices=ATTACKS, help="run only these and replace their rows in --out"
    )
    parser.add_argument("--images", type=int, default=10, help="images per median")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        attack(*arguments.attack)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    checkouts = {"before": arguments.before.resolve()} if arguments.before else {}
    attacks = arguments.only or list(ATTACKS)
    result = measure({**checkouts, "now": ROOT}, arguments.images, attacks)
    if arguments.only and arguments.out.exists():
        known = json.loads(arguments.out.read_text())
        result = {name: {**known.get(name, {}), **rows} for name, rows in result.items()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
