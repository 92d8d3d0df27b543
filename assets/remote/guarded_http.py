"""An HTTP client for user-supplied URLs that reaches only the public internet (SSRF guard).

A name is resolved once, all its addresses are checked, and one is connected: DNS rebinding, odd
spellings and redirects cannot bypass it. The environment's proxies and credentials are unused.
"""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2

from assets.errors import FetchFailed, FetchRefused, TooLarge

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: All addresses of a host and port.
Resolve = Callable[[str, int], Sequence[str]]
#: Receives the bytes so far and in total, if stated.
Progress = Callable[[int, int | None], None]

_PORTS = {"https": 443, "http": 80}
_CHUNK_BYTES = 1 << 20
_MAX_URL_CHARS = 2048
#: RFC 9637; some supported Pythons lack it.
_DOCUMENTATION = (ipaddress.IPv6Network("3fff::/20"),)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be fetched. ``hosts`` are patterns (``*.example.org``); ``networks``, at any port,
    need not be public, e.g. an operator's model store."""

    schemes: Sequence[str] = ("https",)
    hosts: Sequence[str] = ("*",)
    networks: Sequence[Network] = ()


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Timeouts, and the least rate within every ``window_s``."""

    connect_s: float = 10.0
    answer_s: float = 30.0
    overall_s: float = 6 * 3600.0
    least_bytes_per_s: float = 50e3
    window_s: float = 20.0
    redirects: int = 3


def system_resolve(host: str, port: int) -> Sequence[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


class Fetcher:
    """The guarded client. Thread-safe; one connection per transfer."""

    def __init__(
        self,
        rules: Rules | None = None,
        limits: FetchLimits | None = None,
        resolve: Resolve = system_resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules or Rules()
        self._limits = limits or FetchLimits()
        self._resolve = resolve
        self._ssl = ssl_context or ssl.create_default_context()

    def check(self, url: str) -> SplitResult:
        """Check a URL without resolving its host.

        Raises:
            FetchRefused: names the violated rule.
        """
        if len(url) > _MAX_URL_CHARS or not url.isascii() or not url.isprintable():
            raise FetchRefused(f"a URL has at most {_MAX_URL_CHARS} printable ASCII characters")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise FetchRefused(f"invalid URL: {error}") from None
        if parts.scheme not in self._rules.schemes:
            raise FetchRefused(f"only {' or '.join(self._rules.schemes)} URLs are accepted")
        if not parts.hostname:
            raise FetchRefused("this URL has no host")
        if parts.username is not None or parts.password is not None:
            raise FetchRefused("a URL may not contain credentials")
        host = parts.hostname.lower().rstrip(".")
        if not any(fnmatchcase(host, pattern) for pattern in self._rules.hosts):
            raise FetchRefused(f"imports from the host {host!r} are not allowed here")
        return parts

    def fetch(
        self, url: str, target: Writer, most_bytes: int, progress: Progress = lambda *_: None
    ) -> int:
        """Stream the body into ``target``; return its bytes.

        Raises:
            FetchRefused: the URL, an address or a redirect is not allowed.
            TooLarge: over ``most_bytes``, declared or received.
            FetchFailed: the server is unreachable, too slow, breaks off or answers with an error.
        """
        with self._opened(url) as (response, watch):
            declared = _content_length(response)
            if declared is not None and declared > most_bytes:
                raise TooLarge(f"{declared} bytes; at most {most_bytes} are accepted")
            received = 0
            for chunk in response.iter_stream():
                received += len(chunk)
                if received > most_bytes:
                    raise TooLarge(f"more than the {most_bytes} bytes that are accepted")
                target.write(chunk)
                watch.received(len(chunk))
                progress(received, declared)
            return received

    def fetch_json(self, url: str, most_bytes: int = 8 << 20) -> object:
        """Return parsed JSON. Raises as ``fetch``; FetchFailed: not JSON."""
        body = io.BytesIO()
        self.fetch(url, body, most_bytes)
        try:
            return json.loads(body.getvalue())
        except (ValueError, RecursionError):
            raise FetchFailed(f"{urlsplit(url).hostname} did not answer with JSON") from None

    @contextmanager
    def _opened(self, url: str) -> Iterator[tuple[httpcore2.Response, _Watch]]:
        watch = _Watch(self._limits)
        backend = _GuardedBackend(self._rules, self._limits, self._resolve, watch)
        with httpcore2.ConnectionPool(
            ssl_context=self._ssl, network_backend=backend, max_keepalive_connections=0
        ) as pool:
            for _ in range(self._limits.redirects + 1):
                parts = self.check(url)
                with _translated(parts), self._request(pool, url, watch) as response:
                    location = _location(response)
                    if location is None:
                        _check_answer(parts, response)
                        watch.answered()
                        yield response, watch
                        return
                    url = _joined(url, location)
        raise FetchRefused(f"more than {self._limits.redirects} redirects")

    @contextmanager
    def _request(
        self, pool: httpcore2.ConnectionPool, url: str, watch: _Watch
    ) -> Iterator[httpcore2.Response]:
        limits = self._limits
        timeouts = {
            "connect": limits.connect_s, "read": limits.answer_s, "write": limits.answer_s,
            "pool": limits.connect_s,
        }  # fmt: skip
        headers = [
            (b"Host", _host_header(urlsplit(url))),
            (b"User-Agent", b"asset-orchestrator"),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
        ]
        watch.asked()
        with pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as response:
            yield response


class _Watch:
    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._overall_deadline = time.monotonic() + limits.overall_s
        self._deadline = self._overall_deadline
        self._window_began = time.monotonic()
        self._in_window = 0

    def asked(self) -> None:
        self._deadline = min(self._overall_deadline, time.monotonic() + self._limits.answer_s)

    def answered(self) -> None:
        self._deadline = self._overall_deadline
        self._window_began = time.monotonic()

    def left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise FetchFailed("the transfer took too long")
        return left

    def received(self, count: int) -> None:
        self._in_window += count
        elapsed = time.monotonic() - self._window_began
        if elapsed >= self._limits.window_s:
            rate = self._in_window / elapsed
            if rate < self._limits.least_bytes_per_s:
                least = self._limits.least_bytes_per_s / 1e3
                raise FetchFailed(
                    f"the transfer ran at {rate / 1e3:.1f} kB/s; {least:g} kB/s are required"
                )
            self._window_began, self._in_window = time.monotonic(), 0


class _GuardedBackend(httpcore2.NetworkBackend):
    def __init__(self, rules: Rules, limits: FetchLimits, resolve: Resolve, watch: _Watch) -> None:
        self._rules = rules
        self._limits = limits
        self._resolve = resolve
        self._watch = watch
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.NetworkStream:
        try:
            addresses = list(dict.fromkeys(self._resolve(host, port)))
        except (OSError, UnicodeError):
            raise FetchFailed(_not_public(host)) from None
        # One forbidden address refuses the name.
        for address in addresses:
            self._check_address(host, address, port)
        for address in addresses:
            limit = min(self._watch.left_s(), self._limits.connect_s)
            try:
                stream = self._inner.connect_tcp(address, port, limit, local_address)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
            return _WatchedStream(stream, self._watch)
        raise FetchFailed(f"{host} cannot be reached")

    def connect_unix_socket(self, path: str, *_: object, **__: object) -> httpcore2.NetworkStream:
        raise FetchRefused("only addresses on the public internet are allowed")

    def _check_address(self, host: str, address: str, port: int) -> None:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if any(ip in network for network in self._rules.networks):
            return
        if not all(is_public(each) for each in (ip, *embedded(ip))):
            raise FetchRefused(_not_public(host))
        if port not in _PORTS.values():
            raise FetchRefused(f"port {port} is not allowed; use 443 or 80")


def _not_public(host: str) -> str:
    """The same for unknown names: reveals no internal host."""
    return f"{host!r} cannot be resolved, or is not on the public internet"


class _WatchedStream(httpcore2.NetworkStream):
    """Times out at the transfer's deadline."""

    def __init__(self, inner: httpcore2.NetworkStream, watch: _Watch) -> None:
        self._inner = inner
        self._watch = watch

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._sooner(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._sooner(timeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        secure = self._inner.start_tls(ssl_context, server_hostname, self._sooner(timeout))
        return _WatchedStream(secure, self._watch)

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)

    def _sooner(self, timeout: float | None) -> float:
        left = self._watch.left_s()
        return left if timeout is None else min(left, timeout)


def is_public(address: IpAddress) -> bool:
    """Whether the address is globally routable unicast."""
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    is_documentation = any(address in network for network in _DOCUMENTATION)
    is_special = is_documentation or address.is_multicast or address.is_reserved
    return not is_special and address.is_global


def embedded(address: IpAddress) -> Iterator[ipaddress.IPv4Address]:
    """Yield mapped, 6to4, Teredo and NAT64 IPv4 addresses."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in _NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


@contextmanager
def _translated(parts: SplitResult) -> Iterator[None]:
    host = parts.hostname
    try:
        yield
    except httpcore2.TimeoutException:
        raise FetchFailed(f"{host} does not answer") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise FetchFailed(f"the transfer from {host} broke off: {error}") from None
    except httpcore2.UnsupportedProtocol as error:
        raise FetchRefused(str(error)) from None


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    values = [value for key, value in response.headers if key.lower() == name]
    return values[0].decode("latin-1").strip() if values else None


def _location(response: httpcore2.Response) -> str | None:
    if response.status not in (301, 302, 303, 307, 308):
        return None
    location = _header(response, b"location")
    if not location:
        raise FetchFailed("the server sent a redirect without a location")
    return location


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchFailed("the server sent a redirect to an invalid URL") from None


def _check_answer(parts: SplitResult, response: httpcore2.Response) -> None:
    if response.status != 200:
        raise FetchFailed(f"{parts.hostname} answered {response.status}")
    if (_header(response, b"content-encoding") or "identity").lower() != "identity":
        raise FetchFailed(f"{parts.hostname} sent a compressed body, which was not requested")


def _content_length(response: httpcore2.Response) -> int | None:
    text = _header(response, b"content-length")
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _host_header(parts: SplitResult) -> bytes:
    host = parts.netloc.rpartition("@")[2]
    return host.encode("ascii")
