"""HTTP/1.1 on uvicorn's lower interface: one object a connection, no task a request.

uvicorn makes one of these for each connection (`Config.http`) and asks it to `shutdown`; parsing is
llhttp's (httptools). Requests of one connection are answered in their order: what a client
pipelines waits, and reading pauses, until the answer before it is out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.outcomes import OK, Answer, Failure, refusal
from kstream_agg.proxy.pushing import Head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from kstream_agg.proxy.handler import Handler

__all__ = ["ConnectionRules", "ConnectionState", "PushProtocol"]

_log = get_logger(__name__)

_PIPELINE_LIMIT: Final = 16
_LINGER_S: Final = 2.0
_PREFLIGHT: Final = (
    ("access-control-allow-methods", "POST"),
    ("access-control-allow-headers", "authorization, content-type, traceparent, x-api-key"),
    ("access-control-max-age", "3600"),
)
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """The settings a connection goes by; sizes in bytes, times in seconds."""

    max_body_bytes: int
    max_header_bytes: int
    max_connections: int
    max_buffered_bytes: int
    request_timeout_s: float
    keep_alive_s: float
    cors_origins: tuple[str, ...] = ()


class ConnectionState:
    """What all connections of a worker share.

    Args:
        handler: Serves `POST /push`.
        pages: What GET gives, by path: content type and body.
        rules: What connections go by.
        monotonic: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        handler: Handler,
        pages: Mapping[bytes, tuple[str, bytes]],
        rules: ConnectionRules,
        monotonic: Callable[[], float],
    ) -> None:
        self.handler = handler
        self.pages = pages
        self.rules = rules
        self.monotonic = monotonic
        self.connections: set[PushProtocol] = set()
        self.buffered_bytes = 0
        self._cors = {
            origin.encode(): (("access-control-allow-origin", origin), ("vary", "origin"))
            for origin in rules.cors_origins
        }
        self.ok = b""
        self.date = ""

    def cors_headers(self, origin: bytes | None) -> tuple[tuple[str, str], ...]:
        """What lets a browser show the answer to a page of this origin."""
        if origin is None or not self._cors:
            return ()
        return self._cors.get(origin) or self._cors.get(b"*") or ()

    def tick(self, date: str) -> None:
        """Once a second: the new date, and an end to those who are too slow."""
        self.date = date
        self.ok = _render(OK, date, keep_alive=True)
        now = self.monotonic()
        for connection in list(self.connections):
            connection.check_time(now)


@dataclass(slots=True)
class _Request:
    """A request that has been read."""

    method: bytes
    path: bytes
    head: Head
    body: bytes
    keep_alive: bool
    origin: bytes | None = None
    failure: Failure | None = None


class PushProtocol(asyncio.Protocol):
    """One client's connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        del config, _loop
        self._server = server_state
        self._state: ConnectionState = app_state["connections"]
        self._rules = self._state.rules
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._address = ""
        self._queue: deque[_Request] = deque()
        self._answering = False
        self._deaf = False
        self._blocked = False
        self._deadline = 0.0
        self._keep_alive = True
        self._without_body = False
        self._cors: tuple[tuple[str, str], ...] = ()
        # The request that is being read.
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._headers_done = False
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._body: list[bytes] = []
        self._size = 0
        self._reading = False

    # --- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        state = self._state
        state.connections.add(self)
        self._server.connections.add(cast("Any", self))  # it asks for `shutdown` alone
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        self._deadline = state.monotonic() + self._rules.request_timeout_s
        if len(state.connections) > self._rules.max_connections:
            self._refuse(Failure(503, "too many connections: try again later", 1))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; what is on its way goes on."""
        del exc
        self._state.buffered_bytes -= self._size
        self._size = 0
        self._state.connections.discard(self)
        self._server.connections.discard(cast("Any", self))
        self._transport = None
        self._queue.clear()

    def eof_received(self) -> None:
        """The client sends no more."""

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._deaf:
            return
        if not self._headers_done:
            self._unparsed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Failure(400, "this server does not upgrade to another protocol"))
        except httptools.HttpParserCallbackError as error:
            _log.exception("a request could not be served", exc_info=error)
            self._refuse(Failure(500, "the server has a defect; its log says more"))
        except httptools.HttpParserError as error:
            self._refuse(Failure(400, f"this is not HTTP/1.1: {error}"))
        else:
            if not self._headers_done and self._unparsed_bytes > self._rules.max_header_bytes:
                self._headers_too_large()

    def pause_writing(self) -> None:
        """The client does not read its answers: read no more of its requests."""
        self._blocked = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._blocked = False
        self._resume()

    # --- uvicorn ---------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Finish what has been read, then close."""
        self._keep_alive = False
        busy = self._answering or self._queue or (self._reading and not self._deaf)
        if not busy and self._transport is not None:
            self._transport.close()

    # --- httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins: it has its time from here."""
        self._deadline = self._state.monotonic() + self._rules.request_timeout_s
        self._reading = True

    def on_url(self, url: bytes) -> None:
        """The request's target."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.lower()] = value
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._rules.max_header_bytes:
            self._headers_too_large()

    def on_headers_complete(self) -> None:
        """All headers are there: refuse early what will not be taken."""
        self._headers_done = True
        length = self._headers.get(b"content-length")
        if length is not None and int(length) > self._rules.max_body_bytes:
            self._too_large()
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._deaf:
            return
        state = self._state
        self._size += len(body)
        state.buffered_bytes += len(body)
        self._body.append(body)
        if self._size > self._rules.max_body_bytes:
            self._too_large()
        elif state.buffered_bytes > self._rules.max_buffered_bytes and len(self._body) > 1:
            self._refuse(Failure(503, "too many requests are being read: try again later", 1))

    def on_message_complete(self) -> None:
        """The request has been read."""
        if self._deaf:
            return
        pieces = self._body
        headers = self._headers
        request = _Request(
            self._parser.get_method(),
            self._path.partition(b"?")[0],
            Head(
                self._address,
                headers.get(b"authorization"),
                headers.get(b"x-api-key"),
                headers.get(b"traceparent"),
            ),
            pieces[0] if len(pieces) == 1 else b"".join(pieces),
            self._parser.should_keep_alive(),
            headers.get(b"origin"),
        )
        self._state.buffered_bytes -= self._size
        self._begin()
        if self._answering:
            self._queue.append(request)
            if len(self._queue) >= _PIPELINE_LIMIT and self._transport is not None:
                self._transport.pause_reading()
        else:
            self._serve(request)

    # --- serving ---------------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """End the connection when its client has been too slow."""
        if self._answering or self._transport is None or now < self._deadline:
            return
        if self._reading and not self._deaf:
            self._refuse(Failure(408, "the request did not come in time"))
        else:
            self._transport.close()

    def _serve(self, request: _Request) -> None:
        self._answering = True
        self._keep_alive = self._keep_alive and request.keep_alive
        self._without_body = request.method == b"HEAD"
        self._cors = self._state.cors_headers(request.origin)
        if request.failure is not None:
            self._state.handler.refuse(request.failure, self._respond)
        elif request.path != b"/push":
            self._respond(self._page(request))
        elif request.method == b"POST":
            self._state.handler.push(request.body, request.head, self._respond)
        elif request.method == b"OPTIONS" and self._cors:
            self._respond(Answer(204, b"", _PREFLIGHT))
        else:
            self._respond(_not_allowed("POST"))

    def _page(self, request: _Request) -> Answer:
        page = self._state.pages.get(request.path)
        if page is None:
            return refusal(Failure(404, "nothing is here: POST /push, or see /docs"))
        if request.method not in (b"GET", b"HEAD"):
            return _not_allowed("GET, HEAD")
        content_type, body = page
        headers = (("content-type", content_type), ("x-content-type-options", "nosniff"))
        return Answer(200, body, headers)

    def _respond(self, made: Answer) -> None:
        """Send an answer, then go on with what waits."""
        transport = self._transport
        self._answering = False
        if transport is None:
            return
        if made is OK and self._keep_alive and not self._cors:
            transport.write(self._state.ok)
        else:
            made = Answer(made.status, made.body, made.headers + self._cors)
            keep_alive, bodiless = self._keep_alive, self._without_body
            transport.write(
                _render(made, self._state.date, keep_alive=keep_alive, without_body=bodiless)
            )
        if not self._keep_alive:
            self._end()
            return
        rules = self._rules
        wait = rules.request_timeout_s if self._reading else rules.keep_alive_s
        self._deadline = self._state.monotonic() + wait
        if self._queue:
            self._serve(self._queue.popleft())
            self._resume()

    def _end(self) -> None:
        """Close; first let a client that is still sending see its answer instead of a reset."""
        transport = self._transport
        if transport is None:
            return
        self._queue.clear()
        if self._deaf and transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            self._deadline = self._state.monotonic() + _LINGER_S
        else:
            self._deaf = True
            transport.close()

    def _begin(self) -> None:
        """Be ready for the next request."""
        self._path = b""
        self._headers = {}
        self._headers_done = False
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._body = []
        self._size = 0
        self._reading = False

    def _resume(self) -> None:
        if self._transport is not None and not self._blocked and not self._transport.is_closing():
            self._transport.resume_reading()

    def _headers_too_large(self) -> None:
        limit = self._rules.max_header_bytes
        self._refuse(Failure(431, f"the headers are larger than {limit} bytes"))

    def _too_large(self) -> None:
        self._refuse(Failure(413, f"the body is larger than {self._rules.max_body_bytes} bytes"))

    def _refuse(self, failure: Failure) -> None:
        """Answer what cannot be read to its end, after those before it, and close."""
        if self._deaf:
            return
        self._deaf = True
        self._state.buffered_bytes -= self._size
        self._size = 0
        self._body = []
        request = _Request(b"", b"", Head(), b"", keep_alive=False, failure=failure)
        if self._answering:
            self._queue.append(request)
        else:
            self._serve(request)


def _not_allowed(allowed: str) -> Answer:
    made = refusal(Failure(405, f"this takes {allowed}"))
    return Answer(made.status, made.body, (("allow", allowed),))


def _render(made: Answer, date: str, *, keep_alive: bool, without_body: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {made.status} {_REASONS.get(made.status, 'Unknown')}", f"date: {date}"]
    if not any(name == "content-type" for name, _value in made.headers):
        lines.append("content-type: application/json")
    lines.append(f"content-length: {len(made.body)}")
    lines += [f"{name}: {value}" for name, value in made.headers]
    if not keep_alive:
        lines.append("connection: close")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if without_body else head + made.body
