"""The simulated exchange on a port: websocket and REST. Moves bytes; the protocol is elsewhere.

The player lets trades happen one batch after another and waits until every subscriber has taken
a batch before the next: a subscriber that reads slowly slows the playback down, nothing is
dropped and nothing piles up. Every frame to a client passes `_Link.send`, where a scenario's
faults befall it. `/control` shows the scenario and changes it: `/control?drop=0.01`,
`/control?disconnect=abrupt`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, get_args
from urllib.parse import parse_qsl, urlsplit

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.simulation.adversary import Adversary
from kstream_agg.deribit.simulation.link_faults import Pause
from kstream_agg.deribit.simulation.rest import RestCalls, respond_json
from kstream_agg.deribit.simulation.rpc import Moment
from kstream_agg.deribit.simulation.scenario import CloseKind, Scenario
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

__all__ = ["CONTROL_PATH", "REST_PATH", "SERVER_HEADER", "WEBSOCKET_PATH", "SimulatorServer"]

WEBSOCKET_PATH: Final = "/ws/api/v2"
REST_PATH: Final = "/api/v2"
CONTROL_PATH: Final = "/control"
SERVER_HEADER: Final = "deribit-simulator"

_log = get_logger(__name__)

_MAX_MESSAGE_BYTES: Final = 1 << 20  # above the protocol's own limit, whose error must get out
# A few notifications of 100 trades: enough to keep both ends busy, little enough to hold back.
_WRITE_LIMIT_BYTES: Final = 256 * 1024
_BATCH_TRADES: Final = 500  # several frames between two looks at the clock and other tasks
_TICK_S: Final = 0.1  # the delivery rhythm of 100ms channels
_HEARTBEAT: Final = b'"method":"heartbeat"'
_MAINTENANCE: Final = (
    b'{"jsonrpc":"2.0","method":"subscription","params":'
    b'{"channel":"platform_state","data":{"maintenance":true}}}'
)
_POLL_S: Final = 0.25  # fine enough for heartbeats and the 1 s of agg2


class _Link:
    """A connection and its session."""

    def __init__(
        self, connection: ServerConnection, session: SimulatedSession, adversary: Adversary
    ) -> None:
        self._connection = connection
        self._adversary = adversary
        self._faults = adversary.link_faults()
        self._muted = False
        self.session = session

    async def send(self, frames: Sequence[bytes], close: Close | None = None) -> None:
        """Write frames, waiting while the buffer is full; then perhaps end the connection."""
        steps = frames if self._adversary.scenario.is_calm else self._faults.apply(frames)
        with contextlib.suppress(ConnectionClosed):
            for step in steps:
                if self._muted:
                    return
                if isinstance(step, bytes):
                    await self._connection.send(step, text=True)
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    await self.cut(step.kind)
                    return
            if close is not None and not self._muted:
                await self._end(close)

    async def release(self) -> None:
        """Write what the faults held back."""
        with contextlib.suppress(ConnectionClosed):
            for frame in () if self._muted else self._faults.flush():
                await self._connection.send(frame, text=True)

    async def cut(self, kind: CloseKind) -> None:
        """End the connection in one of the ways connections end."""
        if kind == "silent":
            self._muted = True
            self.session.hang_up()
        else:
            await self._end(Close(1001, "going away") if kind == "clean" else Close(1006))

    async def _end(self, close: Close) -> None:
        self.session.hang_up()
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
        adversary: What goes wrong; default: nothing.

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
        adversary: Adversary | None = None,
    ) -> None:
        self.adversary = adversary or Adversary(Scenario())
        self._rest = RestCalls(exchange, self.adversary)
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
            token_s=self.adversary.scenario.token_s,
        )
        link = _Link(connection, session, self.adversary)
        self._links.add(link)
        timer = asyncio.create_task(self._poll(link), name="simulator heartbeat")
        try:
            async for text in connection:
                output = self._answer(session, text)
                await link.send(output.frames, output.close)
                if session.subscribed:
                    self._first_subscription.set()
        except ConnectionClosed:
            pass  # clients come and go as they like
        finally:
            self._links.discard(link)
            timer.cancel()

    def _answer(self, session: SimulatedSession, text: str | bytes) -> Output:
        now = self._now()
        refusal = self.adversary.refuses_call(now)
        if refusal is None:
            return session.handle(text, now)
        return session.refuse(text, refusal, now)

    async def _poll(self, link: _Link) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            output: Output = link.session.poll(self._now())
            if self.adversary.scenario.hold_heartbeats:
                output.frames = [frame for frame in output.frames if _HEARTBEAT not in frame]
            if output.frames or output.close:
                await link.send(output.frames, output.close)
            else:
                await link.release()

    async def _play(self) -> None:
        await self._first_subscription.wait()
        self.playback.begin(self._now())
        _log.info("playback begins")
        missed = 0
        while True:
            if 0 < self.adversary.scenario.missed_trades <= missed:
                await self._subscription()
                missed = 0
            now = self._now()
            trades = self.playback.due(now, _BATCH_TRADES)
            if trades:
                happened = self.exchange.publish(trades)
                links = [link for link in self._links if link.session.subscribed]
                missed = 0 if links else missed + len(happened)
                await asyncio.gather(
                    *(link.send(link.session.publish(happened, now)) for link in links)
                )
                if self.adversary.begins_maintenance(len(links), now):
                    await self._go_into_maintenance()
            if self.playback.played and not self.played.is_set():
                self._finish_recording()
            wait_s = self.playback.wait_s(self._now())
            if wait_s is None:
                await asyncio.Event().wait()  # stay up, idle
            elif wait_s > 0:
                await asyncio.sleep(max(wait_s, _TICK_S))
            else:
                await asyncio.sleep(0)

    async def _subscription(self) -> None:
        while not any(link.session.subscribed for link in self._links):  # noqa: ASYNC110 - rare
            await asyncio.sleep(0.01)

    async def _go_into_maintenance(self) -> None:
        for link in list(self._links):
            frames = [_MAINTENANCE] if link.session.watches_platform else []
            await link.send(frames, Close(1001, "maintenance"))

    async def disconnect(self, kind: CloseKind) -> None:
        """End all connections."""
        for link in list(self._links):
            await link.cut(kind)

    def _finish_recording(self) -> None:
        self.played.set()
        _log.info("the recording is played", trades=self.exchange.published)
        if self._on_played is not None:
            self._on_played()

    async def _process_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | None:
        """Answer REST and the control calls; None lets the websocket handshake go on."""
        parts = urlsplit(request.path)
        if parts.path == WEBSOCKET_PATH:
            status = self.adversary.refuses_handshake()
            if status is None and self.adversary.in_maintenance(self._now()):
                status = 503
            return None if status is None else connection.respond(status, "refused\n")
        query = dict(parse_qsl(parts.query))
        if parts.path == CONTROL_PATH:
            return await self._control(connection, query)
        if not parts.path.startswith(REST_PATH + "/"):
            return connection.respond(404, f"try {WEBSOCKET_PATH} or {REST_PATH}/public/…\n")
        method = parts.path.removeprefix(REST_PATH + "/")
        return await self._rest.answer(connection, method, query, self._now())

    async def _control(self, connection: ServerConnection, wanted: dict[str, str]) -> Response:
        kind = wanted.pop("disconnect", None)
        try:
            scenario = self.adversary.change({k: _value(text) for k, text in wanted.items()})
        except SettingsError as error:
            return respond_json(connection, 400, msgspec.json.encode({"error": str(error)}))
        for known in get_args(CloseKind):
            if kind == known:
                await self.disconnect(known)
        return respond_json(connection, 200, msgspec.json.encode(scenario.model_dump()))


def _value(text: str) -> object:
    try:
        found: object = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return found
