"""The guarded HTTP client, on loopback.

The rules allow 127.0.0.2 (the internet), not 127.0.0.1 (an internal host).
"""

from __future__ import annotations

import io
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from assets.errors import FetchFailed, FetchRefused, TooLarge
from assets.remote.guarded_http import (
    Fetcher,
    FetchLimits,
    Rules,
    embedded,
    is_public,
    system_resolve,
)
from assets.remote.huggingface import download_url, find_file

OUTSIDE, INSIDE = "127.0.0.2", "127.0.0.1"
QUICK = FetchLimits(connect_s=2.0, answer_s=1.0, overall_s=5.0, least_bytes_per_s=1e4, window_s=0.4)
MOST = 1 << 20

Answer = Callable[[socket.socket, str], None]


class Server:
    def __init__(self, address: str, family: Any = socket.AF_INET) -> None:
        self.answer: Answer = lambda *_: None
        self.requests: list[str] = []
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((address, 0))
        self._socket.listen(8)
        self.port = self._socket.getsockname()[1]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            connection, _ = self._socket.accept()
            with connection:
                request = connection.recv(65536).decode("latin-1")
                if self._stopped.is_set() or not request:
                    continue
                self.requests.append(request)
                try:
                    self.answer(connection, request)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)
                except OSError:
                    continue

    def close(self) -> None:
        self._stopped.set()
        family = self._socket.family
        with socket.socket(family, socket.SOCK_STREAM) as last:
            last.connect(self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def respond(self, *lines: str, body: bytes = b"") -> None:
        head = "\r\n".join(["HTTP/1.1 " + lines[0], *lines[1:], "Connection: close", "", ""])
        self.answer = lambda connection, _: connection.sendall(head.encode() + body)

    def respond_ok(self, body: bytes) -> None:
        self.respond("200 OK", f"Content-Length: {len(body)}", body=body)


@contextmanager
def server(address: str, family: Any = socket.AF_INET) -> Iterator[Server]:
    running = Server(address, family)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def outside() -> Iterator[Server]:
    with server(OUTSIDE) as running:
        yield running


@pytest.fixture
def inside() -> Iterator[Server]:
    with server(INSIDE) as running:
        running.respond_ok(b"a secret")
        yield running


class Names:
    """A recording resolver with fixed answers."""

    def __init__(self, **names: Sequence[Sequence[str]]) -> None:
        self._names = {host.replace("_", "."): list(answers) for host, answers in names.items()}
        self.requests: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.requests.append(host)
        answers = self._names.get(host)
        if answers is None:
            return system_resolve(host, port)
        return answers.pop(0) if len(answers) > 1 else answers[0]


def fetcher(resolve: Any = None, **limits: Any) -> Fetcher:
    rules = Rules(schemes=("http",), networks=[ipaddress.IPv4Network(f"{OUTSIDE}/32")])
    chosen = FetchLimits(**{**{f: getattr(QUICK, f) for f in QUICK.__slots__}, **limits})
    return Fetcher(rules, chosen, resolve or Names())


def get(fetch: Fetcher, url: str, most: int = MOST, **options: Any) -> bytes:
    body = io.BytesIO()
    assert fetch.fetch(url, body, most, **options) == len(body.getvalue())
    return body.getvalue()


def test_fetch_reports_progress(outside: Server) -> None:
    outside.respond_ok(b"x" * 300_000)
    reports: list[tuple[int, int | None]] = []
    names = Names(files_example=[[OUTSIDE]])
    url = f"http://files.example:{outside.port}/lora.safetensors?token=1"
    data = get(fetcher(names), url, progress=lambda *now: reports.append(now))
    assert data == b"x" * 300_000
    assert reports[-1] == (300_000, 300_000)
    request = outside.requests[0]
    assert request.startswith("GET /lora.safetensors?token=1 HTTP/1.1\r\n")
    assert f"Host: files.example:{outside.port}\r\n" in request
    assert names.requests == ["files.example"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "0.0.0.0",
        "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
        "[fe80::1]", "[fd00::1]", "[fec0::1]", "[3fff::1]",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "[2001:db8::1]",
    ],
)  # fmt: skip
def test_every_spelling_of_an_internal_address_is_refused(inside: Server, host: str) -> None:
    """With the system's resolver, which knows all spellings."""
    rules = Rules(schemes=("http",))
    with pytest.raises(FetchFailed):
        get(Fetcher(rules, QUICK), f"http://{host}:{inside.port}/")
    for port in ("80", "443"):
        with pytest.raises(FetchRefused, match="not on the public internet"):
            Fetcher(rules, QUICK).fetch(f"http://{host}:{port}/", io.BytesIO(), MOST)
    assert inside.requests == []


def test_dns_rebinding_is_refused(outside: Server, inside: Server) -> None:
    """Resolved once; the connection goes to the checked address."""
    outside.respond_ok(b"fine")
    names = Names(rebinding_example=[[OUTSIDE], [INSIDE]])
    assert get(fetcher(names), f"http://rebinding.example:{outside.port}/") == b"fine"
    assert names.requests == ["rebinding.example"]
    with pytest.raises(FetchRefused):
        get(fetcher(names), f"http://rebinding.example:{outside.port}/")
    for both in ([OUTSIDE, INSIDE], [INSIDE, OUTSIDE], [OUTSIDE, "::1"]):
        with pytest.raises(FetchRefused):
            get(fetcher(Names(two_example=[both])), f"http://two.example:{outside.port}/")
    assert inside.requests == []


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_redirect_to_an_internal_host_is_refused(
    outside: Server, inside: Server, status: str
) -> None:
    for location in (
        f"http://{INSIDE}:{inside.port}/",
        f"http://[::ffff:{INSIDE}]:{inside.port}/",
        f"//localhost:{inside.port}/",
        "file:///etc/passwd",
        "https://public.example/",  # an excluded scheme
        f"http://user:password@{OUTSIDE}:{outside.port}/",
    ):
        outside.respond(status, f"Location: {location}", "Content-Length: 0")
        with pytest.raises(FetchRefused):
            get(fetcher(), f"http://{OUTSIDE}:{outside.port}/")
    # A name that is public first, and internal after the redirect.
    outside.respond(status, "Location: /again", "Content-Length: 0")
    names = Names(rebinding_example=[[OUTSIDE], [INSIDE]])
    with pytest.raises(FetchRefused, match="public internet"):
        get(fetcher(names), f"http://rebinding.example:{outside.port}/")
    assert names.requests == ["rebinding.example"] * 2
    assert inside.requests == []


def test_redirects_are_limited(outside: Server) -> None:
    def answer(connection: socket.socket, request: str) -> None:
        hop = int(request.split("/")[1].split(" ")[0])
        if hop == 0:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            head = f"HTTP/1.1 302 x\r\nLocation: {hop - 1}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())

    outside.answer = answer
    assert get(fetcher(), f"http://{OUTSIDE}:{outside.port}/3") == b"ok"
    with pytest.raises(FetchRefused, match="more than 3 redirects"):
        get(fetcher(), f"http://{OUTSIDE}:{outside.port}/9")


def test_embedded_ipv4_addresses_are_refused(inside: Server) -> None:
    for address in (f"::ffff:{INSIDE}", "::ffff:7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "::1"):
        names = Names(six_example=[[address]])
        with pytest.raises(FetchRefused):
            get(fetcher(names), f"http://six.example:{inside.port}/")
    assert inside.requests == []


def test_slow_transfers_end(outside: Server) -> None:
    def drip(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1\r\nx\r\n")
            time.sleep(0.02)

    outside.answer = drip
    started = time.monotonic()
    with pytest.raises(FetchFailed, match="kB/s are required"):
        get(fetcher(), f"http://{OUTSIDE}:{outside.port}/")
    assert time.monotonic() - started < 3.0

    def drip_headers(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.02)

    outside.answer = drip_headers
    with pytest.raises(FetchFailed, match=r"too long|does not answer"):
        get(fetcher(), f"http://{OUTSIDE}:{outside.port}/")

    def silent(connection: socket.socket, _: str) -> None:
        connection.recv(1)

    outside.answer = silent
    with pytest.raises(FetchFailed, match=r"too long|does not answer"):
        get(fetcher(), f"http://{OUTSIDE}:{outside.port}/")


def test_overall_time_limit(outside: Server) -> None:
    def steady(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
            time.sleep(0.01)

    outside.answer = steady
    with pytest.raises(FetchFailed, match=r"too long|does not answer"):
        get(fetcher(overall_s=0.8), f"http://{OUTSIDE}:{outside.port}/", most=1 << 30)


def test_content_length_is_not_trusted(outside: Server) -> None:
    url = f"http://{OUTSIDE}:{outside.port}/"
    outside.respond("200 OK", "Content-Length: 1000", body=b"short")
    with pytest.raises(FetchFailed, match="broke off"):
        get(fetcher(), url)
    outside.respond("200 OK", "Content-Length: 4", body=b"long, really")
    assert get(fetcher(), url) == b"long"
    outside.respond("200 OK", f"Content-Length: {MOST + 1}")
    with pytest.raises(TooLarge, match=str(MOST + 1)):
        get(fetcher(), url)
    for length in ("-1", "1e3", "4, 5", "99999999999999999999"):
        outside.respond("200 OK", f"Content-Length: {length}", body=b"four")
        with pytest.raises((FetchFailed, TooLarge)):
            get(fetcher(), url)

    def endless(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    outside.answer = endless
    kept = io.BytesIO()
    with pytest.raises(TooLarge):
        fetcher().fetch(url, kept, MOST)
    assert len(kept.getvalue()) <= MOST


def test_unusable_responses_are_reported(outside: Server) -> None:
    url = f"http://{OUTSIDE}:{outside.port}/"
    for lines, reason in (
        (("404 Not Found", "Content-Length: 0"), "answered 404"),
        (("200 OK", "Content-Encoding: gzip", "Content-Length: 0"), "compressed"),
        (("302 Found", "Content-Length: 0"), "without a location"),
        (("302 Found", "Location: https://[::1", "Content-Length: 0"), "invalid URL"),
    ):
        outside.respond(*lines)
        with pytest.raises(FetchFailed, match=reason):
            get(fetcher(), url)
    outside.answer = lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH\r\n")
    with pytest.raises(FetchFailed, match="broke off"):
        get(fetcher(), url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://files.example/", "only https"),
        ("file:///etc/passwd", "only https"),
        ("gopher://files.example/", "only https"),
        ("https://", "no host"),
        ("https://user:pw@files.example/", "credentials"),
        ("https://other.test/", "not allowed"),
        ("https://files.example.evil.test/", "not allowed"),
        ("https://files.example:99999/", "invalid URL"),
        ("https://files.example/" + "x" * 3000, "printable ASCII"),
        ("https://files.example/\r\nX: y", "printable ASCII"),
        ("https://ﬁles.example/", "printable ASCII"),
    ],
)
def test_urls_that_violate_a_rule(url: str, reason: str) -> None:
    with pytest.raises(FetchRefused, match=reason):
        Fetcher(Rules(hosts=("files.example", "*.files.example"))).check(url)


def test_embedded_addresses() -> None:
    def inner(text: str) -> set[str]:
        return {str(address) for address in embedded(ipaddress.ip_address(text))}

    assert inner("::ffff:10.0.0.1") == {"10.0.0.1"}
    assert inner("64:ff9b::8.8.8.8") == {"8.8.8.8"}
    assert inner("2002:0a00:0001::") == {"10.0.0.1"}
    assert inner("8.8.8.8") == set()
    assert is_public(ipaddress.ip_address("8.8.8.8"))
    assert not is_public(ipaddress.ip_address("224.0.0.5"))


def test_file_of_a_repository() -> None:
    requests: list[str] = []
    files = [
        {"rfilename": "README.md"},
        {"rfilename": "style.safetensors", "lfs": {"sha256": "f" * 64, "size": 5}},
        {"rfilename": "unet/model.safetensors"},
    ]

    def answer(url: str) -> Any:
        requests.append(url)
        return {"sha": "abc123", "siblings": files}

    found = find_file("artist/style", answer, "https://hub")
    assert requests == ["https://hub/api/models/artist/style?blobs=true"]
    assert found.url == "https://hub/artist/style/resolve/abc123/style.safetensors"
    assert found.sha256 == "f" * 64
    inner = find_file("artist/style:unet/model.safetensors", answer, "https://hub")
    assert inner.url.endswith("/unet/model.safetensors")
    with pytest.raises(FetchFailed, match="unet/model"):
        find_file("artist/style:nothing.bin", answer)
    files.append({"rfilename": "other.safetensors"})
    with pytest.raises(FetchFailed, match=r"which file.*other\.safetensors, style\.safetensors"):
        find_file("artist/style", answer)
    for malformed in ("style", "a/b/c", "a/..", "a/b?x", "a b/c", "/b"):
        with pytest.raises(FetchFailed, match="not a repository"):
            find_file(malformed, answer)
    malformed_answers: tuple[object, ...] = (
        [], {"siblings": "x"}, {"siblings": [{"rfilename": 5}]},
    )  # fmt: skip
    for document in malformed_answers:
        with pytest.raises(FetchFailed):
            find_file("artist/style", _answering(document))


def _answering(document: object) -> Callable[[str], object]:
    return lambda _: document


def _repository(*files: str) -> Callable[[str], object]:
    siblings = [{"rfilename": path, "lfs": {"sha256": "d" * 64}} for path in files]
    return _answering({"sha": "abc123", "siblings": siblings})


def test_diffusers_repository_is_refused_with_advice() -> None:
    pipeline = ("model_index.json", "unet/diffusion_pytorch_model.safetensors")
    for reference in ("artist/model", "artist/model:unet/diffusion_pytorch_model.safetensors"):
        with pytest.raises(FetchFailed, match=r"diffusers folder.*assets push FOLDER"):
            find_file(reference, _repository(*pipeline))
    single = find_file("artist/model", _repository(*pipeline, "model.safetensors"), "https://hub")
    assert single.url == "https://hub/artist/model/resolve/abc123/model.safetensors"
    with pytest.raises(FetchFailed, match=r"artist/model:FILE \(a.safetensors, b.safetensors\)"):
        find_file("artist/model", _repository(*pipeline, "a.safetensors", "b.safetensors"))


@pytest.mark.parametrize("folder", ["", "styles/one/"])
def test_adapter_configuration_beside_the_file(folder: str) -> None:
    wanted, config = f"{folder}adapter_model.safetensors", f"{folder}adapter_config.json"
    found = find_file(f"artist/style:{wanted}", _repository(wanted, config), "https://hub")
    assert found.adapter_config_url == f"https://hub/artist/style/resolve/abc123/{config}"
    alone = find_file(f"artist/style:{wanted}", _repository(wanted, "other/adapter_config.json"))
    assert alone.adapter_config_url is None
    other = f"{folder}style.safetensors"
    assert find_file(f"a/b:{other}", _repository(other, config)).adapter_config_url is None


@pytest.mark.parametrize(
    ("address", "fetched"),
    [
        ("https://huggingface.co/o/n/blob/main/a/b.safetensors",
         "https://huggingface.co/o/n/resolve/main/a/b.safetensors"),
        ("https://huggingface.co/o/n/resolve/main/blob/b.safetensors",
         "https://huggingface.co/o/n/resolve/main/blob/b.safetensors"),
        ("https://hf.co/o/n/blob/main/b.safetensors?download=true",
         "https://hf.co/o/n/resolve/main/b.safetensors?download=true"),
        ("https://civitai.com/api/download/models/1", "https://civitai.com/api/download/models/1"),
        ("https://example.com/o/n/blob/main/x", "https://example.com/o/n/blob/main/x"),
    ],
)  # fmt: skip
def test_download_url_of_a_page(address: str, fetched: str) -> None:
    assert download_url(address) == fetched


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://huggingface.co/o/n", "hf_repo"),
        ("https://huggingface.co/o/n/tree/main", "hf_repo"),
        ("https://civitai.com/models/1234/a-style?modelVersionId=5", "Download button"),
        ("https://github.com/o/n/blob/main/x.safetensors", "Raw button"),
    ],
)
def test_page_without_a_file_is_refused(address: str, advice: str) -> None:
    with pytest.raises(FetchFailed, match=advice):
        download_url(address)
