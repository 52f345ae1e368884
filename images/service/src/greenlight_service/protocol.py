"""uvicorn's HTTP/1.1 protocol on httptools, with a limit that it lacks."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADER_BYTES = 64 * 1024
"""Request line and headers of one request. Without a limit, a header without end takes all memory, and the event loop
with it."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/json\r\n"
    b"content-length: 33\r\n"
    b"connection: close\r\n"
    b"\r\n"
    b'{"error":"headers are too large"}'
)


class LimitedProtocol(HttpToolsProtocol):
    """Answers 431 and closes the connection when a request's headers are too large."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_headers = False
        self._header_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Counts what arrives while the headers are incomplete; one call brings at most some hundred kB."""
        super().data_received(data)
        if not self._in_headers:
            return
        self._header_bytes += len(data)
        if self._header_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Called by the parser at a request's first byte."""
        self._in_headers = True
        self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser at the empty line after the headers."""
        self._in_headers = False
        super().on_headers_complete()
