"""HTTP/1.1 with the connection limits that uvicorn leaves to a reverse proxy.

:mod:`serving.api.limits` limits bodies, where an error response is still possible.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.api.throttle import THROTTLE, at_address

#: Of a request's head, or a chunked body's framing.
MAX_HEAD_BYTES = 64 << 10
#: From the start of a request or connection to its headers' end.
HEAD_S = 20.0
#: How long the rest of a body is dropped after the response: some clients read only after writing
#: it.
LINGER_S = 30.0
#: How long a client may read nothing.
STALLED_S = 60.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes connections with a bad head, endless body or stalled reader."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unparsed_bytes = 0
        self._has_progress = False
        self._request_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_request_timer(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_request_timer()
        self._stop_write_timer()

    def data_received(self, data: bytes) -> None:
        self._has_progress = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._unparsed_bytes = 0 if self._has_progress else self._unparsed_bytes + len(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._request_timer is None and self._is_answered:
            self._start_request_timer(HEAD_S)

    def on_headers_complete(self) -> None:
        self._has_progress = True
        self._stop_request_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progress = True
        self._stop_request_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_when_stalled()
        elif self.cycle.more_body and not self.pipeline:
            self._unset_keepalive_if_required()
            self._start_request_timer(LINGER_S)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_when_stalled()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    @property
    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse_head(self) -> None:
        """Answer 431 and close, throttled."""
        self._stop_request_timer()
        host = self.client[0] if self.client else ""
        if delay_s := THROTTLE.delay_s(at_address(host)):
            self.transport.pause_reading()
            self.loop.call_later(delay_s, self._refuse_head_now)
        else:
            self._refuse_head_now()

    def _refuse_head_now(self) -> None:
        if self._is_answered and not self.transport.is_closing():
            self.transport.write(_answer(431, "Request Header Fields Too Large"))
        self._close()

    def _close(self) -> None:
        """Close once all is sent, or the client stalls."""
        if not self.transport.is_closing():
            self.transport.close()
            self._abort_when_stalled()

    def _abort_when_stalled(self) -> None:
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(STALLED_S, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_request_timer(self, after_s: float) -> None:
        self._stop_request_timer()
        self._request_timer = self.loop.call_later(after_s, self._close_if_answered)

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _close_if_answered(self) -> None:
        self._request_timer = None
        if self._is_answered:
            self._close()


def _answer(status: int, phrase: str) -> bytes:
    return (
        f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain\r\n"
        f"content-length: {len(phrase)}\r\nconnection: close\r\n\r\n{phrase}"
    ).encode("ascii")
