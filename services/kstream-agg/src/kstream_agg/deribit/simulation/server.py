"""The simulated exchange on a port: websocket and REST. Moves bytes; the protocol is elsewhere.

The player lets trades happen one batch after another and waits until every subscriber has taken
a batch before the next: a subscriber that reads slowly slows the playback down, nothing is
dropped and nothing piles up. Every frame to a client passes `_Link.send`: the place for a mode
that repeats, reorders or cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.simulation.methods import call_rest
from kstream_agg.deribit.simulation.rpc import Moment, Params, RpcError, error_reply, reply
from kstream_agg.deribit.simulation.session import Close, Output, SimulatedSession

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from websockets.asyncio.server import Server
    from websockets.http11 import Request, Response

    from kstream_agg.core.clock import Clock
    from kstream_agg.deribit.simulation.exchange import Exchange
    from kstream_agg.deribit.simulation.playback import Playback

__all__ = ["REST_PATH", "SERVER_HEADER", "WEBSOCKET_PATH", "SimulatorServer"]

WEBSOCKET_PATH: Final = "/ws/api/v2"
REST_PATH: Final = "/api/v2"
SERVER_HEADER: Final = "deribit-simulator"

_log = get_logger(__name__)

_MAX_MESSAGE_BYTES: Final = 1 << 20  # above the protocol's own limit, whose error must get out
# A few notifications of 100 trades: enough to keep both ends busy, little enough to hold back.
_WRITE_LIMIT_BYTES: Final = 256 * 1024
_BATCH_TRADES: Final = 500  # several frames between two looks at the clock and other tasks
_TICK_S: Final = 0.1  # the delivery rhythm of 100ms channels
_POLL_S: Final = 0.25  # fine enough for heartbeats and the 1 s of agg2


class _Link:
    """A connection and its session."""

    def __init__(self, connection: ServerConnection, session: SimulatedSession) -> None:
        self._connection = connection
        self.session = session

    async def send(self, frames: Sequence[bytes], close: Close | None = None) -> None:
        """Write frames, waiting while the buffer is full; then perhaps end the connection."""
        with contextlib.suppress(ConnectionClosed):
            for frame in frames:
                await self._connection.send(frame, text=True)
            if close is not None:
                await self._end(close)

    async def _end(self, close: Close) -> None:
        if close.code == 1006:
            self._connection.transport.abort()
        else:
            await self._connection.close(close.code, close.reason)


class SimulatorServer:
    """Serves a simulated exchange; an async context manager that starts and ends it.

    Args:
        exchange: Its world.
        playback: What happens in it, from the first subscription on.
        clock: What time it is.
        host: Address to listen on.
        port: 0 takes a free one; `port` then tells which.
        frame_trades: Trades in a notification at most.
        compression: Offer permessage-deflate; over loopback it only costs CPU.
        seed: For what is left to chance.
        on_played: Called when the recording is played and its loop begins.

    Raises:
        UnavailableError: On entering: the address cannot be listened on.
    """

    def __init__(  # noqa: PLR0913 - a composition root's settings, all by name
        self,
        exchange: Exchange,
        playback: Playback,
        clock: Clock,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        frame_trades: int = 100,
        compression: bool = False,
        seed: int = 0,
        on_played: Callable[[], None] | None = None,
    ) -> None:
        self.exchange = exchange
        self.playback = playback
        self.port = port
        self.played = asyncio.Event()
        """Set when the recording's last trade is on its way to every subscriber."""
        self._clock = clock
        self._host = host
        self._frame_trades = frame_trades
        self._compression = "deflate" if compression else None
        self._seed = seed
        self._on_played = on_played
        self._opened = 0
        self._links: set[_Link] = set()
        self._first_subscription = asyncio.Event()
        self._server: Server | None = None
        self._player: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        try:
            self._server = await serve(
                self._serve_client,
                self._host,
                self.port,
                process_request=self._process_request,
                compression=self._compression,
                max_size=_MAX_MESSAGE_BYTES,
                write_limit=_WRITE_LIMIT_BYTES,
                ping_interval=None,  # the exchange has heartbeats of its own
                close_timeout=2,
                server_header=SERVER_HEADER,
            )
        except OSError as error:
            raise UnavailableError(
                f"the simulator cannot listen on {self._host}:{self.port}: {error.strerror}",
                remedy="end the program that holds the port, or choose another with --port",
            ) from error
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self._player = asyncio.create_task(self._play(), name="simulator playback")
        self._player.add_done_callback(lambda _: self.played.set())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None  # noqa: S101 - set on entering
        assert self._player is not None  # noqa: S101 - set on entering
        self._player.cancel()
        self._server.close()
        await self._server.wait_closed()
        with contextlib.suppress(asyncio.CancelledError):
            await self._player

    async def wait_played(self) -> None:
        """Return once the recording's last trade was written; raise what playing fails with."""
        assert self._player is not None  # noqa: S101 - set on entering
        await self.played.wait()
        if self._player.done():
            self._player.result()

    async def run(self) -> None:
        """Wait as long as the playback runs, which is until it is cancelled or fails."""
        assert self._player is not None  # noqa: S101 - set on entering
        await asyncio.shield(self._player)

    def _now(self) -> Moment:
        return Moment.of(self._clock)

    async def _serve_client(self, connection: ServerConnection) -> None:
        self._opened += 1
        session = SimulatedSession(
            self.exchange,
            self._now(),
            seed=self._seed + self._opened,
            frame_trades=self._frame_trades,
        )
        link = _Link(connection, session)
        self._links.add(link)
        timer = asyncio.create_task(self._poll(link), name="simulator heartbeat")
        try:
            async for text in connection:
                output = session.handle(text, self._now())
                await link.send(output.frames, output.close)
                if session.subscribed:
                    self._first_subscription.set()
        except ConnectionClosed:
            pass  # clients come and go as they like
        finally:
            self._links.discard(link)
            timer.cancel()

    async def _poll(self, link: _Link) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            output: Output = link.session.poll(self._now())
            if output.frames or output.close:
                await link.send(output.frames, output.close)

    async def _play(self) -> None:
        await self._first_subscription.wait()
        self.playback.begin(self._now())
        _log.info("playback begins")
        while True:
            now = self._now()
            trades = self.playback.due(now, _BATCH_TRADES)
            if trades:
                happened = self.exchange.publish(trades)
                links = [link for link in self._links if link.session.subscribed]
                await asyncio.gather(
                    *(link.send(link.session.publish(happened, now)) for link in links)
                )
            if self.playback.played and not self.played.is_set():
                self._finish_recording()
            wait_s = self.playback.wait_s(self._now())
            if wait_s is None:
                await asyncio.Event().wait()  # stay up, idle
            elif wait_s > 0:
                await asyncio.sleep(max(wait_s, _TICK_S))
            else:
                await asyncio.sleep(0)

    def _finish_recording(self) -> None:
        self.played.set()
        _log.info("the recording is played", trades=self.exchange.published)
        if self._on_played is not None:
            self._on_played()

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer REST; None lets the websocket handshake go on."""
        parts = urlsplit(request.path)
        if parts.path == WEBSOCKET_PATH:
            return None
        if not parts.path.startswith(REST_PATH + "/"):
            return connection.respond(404, f"try {WEBSOCKET_PATH} or {REST_PATH}/public/…\n")
        method = parts.path.removeprefix(REST_PATH + "/")
        now = self._now()
        try:
            params = Params(dict(parse_qsl(parts.query)))
            status, body = 200, reply(None, call_rest(self.exchange, method, params, now), now)
        except RpcError as error:
            status, body = 400, error_reply(None, error, now)
        response = connection.respond(status, body.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response
