"""HTTP/1.1 on uvicorn's lower interface: one object a connection, no task a request.

uvicorn makes one of these for each connection (`Config.http`) and asks it to `shutdown`; parsing is
llhttp's (httptools). Requests of one connection are answered in their order: what a client
pipelines waits, and reading pauses, until the answer before it is out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.connections import PREFLIGHT, not_allowed, render
from kstream_agg.proxy.outcomes import OK, Answer, Failure, refusal

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from kstream_agg.proxy.connections import ConnectionState

__all__ = ["PushProtocol"]

_log = get_logger(__name__)

_PIPELINE_LIMIT: Final = 16
_LINGER_S: Final = 2.0


_Request = tuple[bytes, bytes, dict[bytes, bytes], bytes, bool]
"""A request that has been read: method, target, headers, body, whether to keep the connection."""


class PushProtocol(asyncio.Protocol):
    """One client's connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        takes_more: bool = True,
    ) -> None:
        del _loop
        self._config = config
        self._takes_more = takes_more  # what it takes with it does not
        self._server = server_state
        self._state: ConnectionState = app_state["connections"]
        self._rules = self._state.rules
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._address = ""
        self._queue: deque[_Request | Failure] = deque()
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
        self._deadline = state.now + self._rules.request_timeout_s
        if len(state.connections) > self._rules.max_connections:
            self._refuse(Failure(503, "too many connections: try again later", 1))
        if self._takes_more and state.acceptor is not None:
            state.acceptor.take_more(self._another, self._config.ssl)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; what is on its way goes on."""
        del exc
        self._state.buffered_bytes -= self._size
        self._size = 0
        self._state.connections.discard(self)
        self._server.connections.discard(cast("Any", self))
        self._transport = None
        self._queue.clear()

    def eof_received(self) -> bool:
        """The client sends no more; what it waits for it still gets."""
        self._keep_alive = False
        return self._answering and self._transport is not None and self._transport.can_write_eof()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._deaf:
            return
        if not self._headers_done:
            self._unparsed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # the request before it has its answer, or will
            self._deaf = True
            self._keep_alive = False
            if not self._answering:
                self._end()
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
        self._deadline = self._state.now + self._rules.request_timeout_s
        self._reading = True

    def on_url(self, url: bytes) -> None:
        """The request's target."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """All headers are there: refuse early what will not be taken."""
        self._headers_done = True
        headers = self._headers
        limit = self._rules.max_header_bytes
        # Only a chunk that is larger than the limit can hold headers that are.
        if self._unparsed_bytes > limit and limit < sum(
            len(name) + len(value) + 4 for name, value in headers.items()
        ):
            self._headers_too_large()
            return
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._rules.max_body_bytes:
            self._too_large()
        elif b"upgrade" in headers and self._parser.should_upgrade():
            self._refuse(Failure(400, "this server does not upgrade to another protocol"))
        elif b"expect" in headers and self._transport is not None:
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
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        method, path, headers = self._parser.get_method(), self._path, self._headers
        request = (method, path, headers, body, self._parser.should_keep_alive())
        self._state.buffered_bytes -= self._size
        self._begin()
        if self._answering:
            self._queue.append(request)
            if len(self._queue) >= _PIPELINE_LIMIT and self._transport is not None:
                self._transport.pause_reading()
        else:
            self._serve(request)

    def _another(self) -> PushProtocol:
        return PushProtocol(
            self._config, self._server, {"connections": self._state}, takes_more=False
        )

    # --- serving ---------------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """End the connection when its client has been too slow."""
        if self._answering or self._transport is None or now < self._deadline:
            return
        if self._reading and not self._deaf:
            self._refuse(Failure(408, "the request did not come in time"))
        else:
            self._transport.close()

    def _serve(self, request: _Request | Failure) -> None:
        self._answering = True
        state = self._state
        if isinstance(request, Failure):
            self._keep_alive = False
            state.handler.refuse(request, self._respond)
            return
        method, path, headers, body, keep_alive = request
        if not keep_alive:
            self._keep_alive = False
        if b"origin" in headers:
            self._cors = state.cors_headers(headers[b"origin"])
        if path != b"/push":
            path = path.partition(b"?")[0]
        if method == b"POST" and path == b"/push":
            state.handler.push(body, headers, self._address, self._respond)
        else:
            self._without_body = method == b"HEAD"
            self._respond(self._other(method, path))

    def _other(self, method: bytes, path: bytes) -> Answer:
        """The answer to what is no push."""
        if path == b"/push":
            preflight = method == b"OPTIONS" and self._cors
            return Answer(204, b"", PREFLIGHT) if preflight else not_allowed("POST")
        page = self._state.pages.get(path)
        if page is None:
            return refusal(Failure(404, "nothing is here: POST /push, or see /docs"))
        if method not in (b"GET", b"HEAD"):
            return not_allowed("GET, HEAD")
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
                render(made, self._state.date, keep_alive=keep_alive, without_body=bodiless)
            )
            self._cors, self._without_body = (), False
        if not self._keep_alive:
            self._end()
            return
        rules = self._rules
        wait = rules.request_timeout_s if self._reading else rules.keep_alive_s
        self._deadline = self._state.now + wait
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
            self._deadline = self._state.now + _LINGER_S
        else:
            self._deaf = True
            transport.close()

    def _begin(self) -> None:
        """Be ready for the next request."""
        self._path = b""
        self._headers = {}
        self._headers_done = False
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
        if self._answering:
            self._queue.append(failure)
        else:
            self._serve(failure)
