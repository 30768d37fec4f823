"""The exchange simulator: a recording played through the exchange's own protocol.

`running_simulator` is for programs with an event loop, `simulator_in_thread` for those without;
`simulator_service` runs it as a service. Everything simulated says so: the version that
`public/hello` answers begins with `simulator-`, replies say `testnet`, HTTP replies carry
`Server: deribit-simulator`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.clock import Clock, SystemClock
from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.recording import Recording
from kstream_agg.deribit.simulation.adversary import Adversary, SkewedClock
from kstream_agg.deribit.simulation.exchange import Exchange
from kstream_agg.deribit.simulation.options import (
    SimulatorOptions,
    change_options,
    choose_trades,
)
from kstream_agg.deribit.simulation.playback import Playback
from kstream_agg.deribit.simulation.rarities import with_rarities
from kstream_agg.deribit.simulation.server import REST_PATH, WEBSOCKET_PATH, SimulatorServer
from kstream_agg.deribit.simulation.state import SimulatorState, StateFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.scenario import CloseKind

__all__ = [
    "SimulatorHandle",
    "SimulatorOptions",
    "SimulatorThread",
    "change_options",
    "running_simulator",
    "simulator_in_thread",
]

_log = get_logger(__name__)

_KEPT_OVER_A_STOP: Final = 20_000


class SimulatorHandle:
    """A running simulator.

    Args:
        server: It.
        recording: What it plays, as it plays it: filtered and shifted.
        host: Where it listens.
    """

    def __init__(self, server: SimulatorServer, recording: Recording, host: str) -> None:
        self._server = server
        self.recording = recording
        self.exchange = server.exchange
        self.adversary = server.adversary
        self.websocket_url = f"ws://{host}:{server.port}{WEBSOCKET_PATH}"
        self.rest_url = f"http://{host}:{server.port}{REST_PATH}"

    @property
    def connections(self) -> int:
        """Open websocket connections."""
        return self._server.connections

    async def disconnect(self, kind: CloseKind) -> None:
        """End all connections: `clean`, `abrupt` or `silent`."""
        await self._server.disconnect(kind)

    async def played(self) -> None:
        """Return once the recording's last trade was written to every subscriber."""
        await self._server.wait_played()

    async def run(self) -> None:
        """Return never; raise what the playback fails with."""
        await self._server.run()


@contextlib.asynccontextmanager
async def running_simulator(
    trades: Recording | Iterable[WireTrade],
    *,
    options: SimulatorOptions | None = None,
    clock: Clock | None = None,
    **changes: Any,  # noqa: ANN401 - fields of SimulatorOptions, checked by it
) -> AsyncIterator[SimulatorHandle]:
    """Run a simulator in this event loop.

    Args:
        trades: What it plays.
        options: How; default `SimulatorOptions()`.
        clock: What time it is; default the machine's.
        changes: Single options by name.

    Raises:
        SettingsError: An option is wrong, or no trade is left to play.
        UnavailableError: The address cannot be listened on.
    """
    chosen = change_options(options or SimulatorOptions(), changes)
    adversary = Adversary(chosen.read_scenario())
    clock = SkewedClock(clock or SystemClock(), adversary.scenario.clock_skew_ms)
    recording = trades if isinstance(trades, Recording) else Recording.of(trades)
    recording = with_rarities(choose_trades(recording, chosen), adversary.scenario)
    world = _World(recording, chosen, clock, adversary)
    server = SimulatorServer(
        world.exchange,
        world.playback,
        clock,
        host=chosen.host,
        port=chosen.port,
        frame_trades=chosen.frame_trades,
        compression=chosen.compression,
        seed=chosen.seed,
        on_played=world.save_running,
        adversary=adversary,
    )
    async with server:
        yield SimulatorHandle(server, world.recording, chosen.host)
    world.save_stopped()


class _World:
    """The exchange and its playback, new or as an earlier start left them."""

    def __init__(
        self, recording: Recording, options: SimulatorOptions, clock: Clock, adversary: Adversary
    ) -> None:
        self._clock = clock
        self._loop = options.loop
        self._file = StateFile(options.state) if options.state else None
        now_ms = clock.now_ms()
        state = self._file.load(recording.name, len(recording.trades)) if self._file else None
        if options.shift_to_now:
            recording = recording.ending_at(state.last_ms if state else now_ms)
        self.recording = recording
        self.exchange = Exchange(
            recording.trades, history=options.history, write=adversary.spelling.write
        )
        again = self._played_again(state)
        self.playback = Playback(
            recording.trades, options.pace, looped=state.looped - again if state else None
        )
        if state is not None:
            self._go_on(state, now_ms, options.history, again)

    def save_running(self) -> None:
        """The loop has begun: from now on a crash counts as having run on."""
        began = self.playback.loop_began
        if began is not None:
            self._save(began.wall_ms, self._loop)

    def save_stopped(self) -> None:
        """The end, in good order."""
        if self.playback.loop_began is not None:
            self._save(self._clock.now_ms(), 0)

    def _played_again(self, state: SimulatorState | None) -> int:
        """How many of the loop's last trades are put into the history anew.

        After a clean stop a client may lack the very last ones: it can have ended before us.
        """
        if state is None or state.loop or not self._loop:
            return 0
        return min(state.looped, _KEPT_OVER_A_STOP)

    def _go_on(self, state: SimulatorState, now_ms: int, history: int, again: int) -> None:
        self.exchange.publish(self.recording.trades)
        if again:
            began_ms = state.written_ms - round(again * 1000 / self._loop)
            self.exchange.publish(self.playback.catch_up(began_ms, self._loop, again, again))
        missed = state.looped_since(now_ms)
        self.exchange.publish(self.playback.catch_up(state.written_ms, state.loop, missed, history))
        _log.info("going on where the last start ended", looped=self.playback.looped, missed=missed)

    def _save(self, written_ms: int, loop: float) -> None:
        if self._file is None:
            return
        self._file.save(
            SimulatorState(
                recording=self.recording.name,
                trades=len(self.recording.trades),
                last_ms=max(trade["timestamp"] for trade in self.recording.trades),
                looped=self.playback.looped,
                written_ms=written_ms,
                loop=loop,
            )
        )


class SimulatorThread:
    """A simulator in a thread, seen from outside of it.

    Args:
        handle: The simulator.
        loop: Its event loop.
    """

    def __init__(self, handle: SimulatorHandle, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = handle
        self._loop = loop
        self.recording = handle.recording
        self.adversary = handle.adversary
        self.websocket_url = handle.websocket_url
        self.rest_url = handle.rest_url

    def happened(self) -> set[tuple[str, int]]:
        """Instrument and number of the trades that have happened and are kept."""

        async def look() -> set[tuple[str, int]]:
            exchange = self._handle.exchange
            return {
                (trade.instrument, trade.trade_seq)
                for name in exchange.instruments
                for trade in exchange.instrument_trades(name)
            }

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result()

    def wait_played(self, timeout_s: float = 30.0) -> None:
        """Return once the recording's last trade was written to every subscriber.

        Raises:
            UnavailableError: That took longer than `timeout_s` seconds.
        """
        waiting = asyncio.run_coroutine_threadsafe(self._handle.played(), self._loop)
        try:
            waiting.result(timeout_s)
        except TimeoutError as error:
            waiting.cancel()
            raise UnavailableError(
                f"the recording was not played within {timeout_s:g} s",
                remedy="look whether a client has subscribed and reads",
            ) from error


@contextlib.contextmanager
def simulator_in_thread(
    trades: Recording | Iterable[WireTrade],
    *,
    options: SimulatorOptions | None = None,
    **changes: Any,  # noqa: ANN401 - fields of SimulatorOptions, checked by it
) -> Iterator[SimulatorThread]:
    """Run a simulator in a thread with an event loop of its own; arguments as above.

    Raises:
        SettingsError: An option is wrong, or no trade is left to play.
        UnavailableError: The address cannot be listened on.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="deribit-simulator", daemon=True)
    thread.start()
    try:
        running = running_simulator(trades, options=options, **changes)
        handle = asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result()
        try:
            yield SimulatorThread(handle, loop)
        finally:
            asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
