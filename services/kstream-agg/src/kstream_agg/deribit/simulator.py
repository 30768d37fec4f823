"""The exchange simulator: a recording played through the exchange's own protocol.

`running_simulator` is for programs with an event loop, `simulator_in_thread` for those without;
`simulator_service` runs it as a service. Everything simulated says so: the version that
`public/hello` answers begins with `simulator-`, replies say `testnet`, HTTP replies carry
`Server: deribit-simulator`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import threading
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kstream_agg.core.clock import Clock, SystemClock
from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.deribit.recording import Recording
from kstream_agg.deribit.simulation.exchange import Exchange
from kstream_agg.deribit.simulation.playback import Pace, Playback
from kstream_agg.deribit.simulation.server import REST_PATH, WEBSOCKET_PATH, SimulatorServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from kstream_agg.deribit.recording_formats import WireTrade

__all__ = [
    "SimulatorHandle",
    "SimulatorOptions",
    "SimulatorThread",
    "change_options",
    "running_simulator",
    "simulator_in_thread",
]

_log = get_logger(__name__)


def _parse_speed(value: object) -> object:
    if value == "max":
        return value
    try:
        speed = float(str(value))
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise ValueError(f"'{value}' is neither a number above 0 nor max")
    return speed


Speed: TypeAlias = Annotated[float | Literal["max"], BeforeValidator(_parse_speed)]


class SimulatorOptions(BaseModel):
    """How a recording is played and where; the defaults are a test's."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, lt=65536)
    """0 takes a free one."""
    speed: Speed = "max"
    """1 is the speed it was recorded at, N is N times that, `max` as fast as it is read."""
    shift_to_now: bool = False
    """Move the timestamps so that the recording ends when the simulator starts."""
    past_at_once: bool = False
    """Trades of the past happen at once, as fast as they are read; later ones at `speed`."""
    loop: float = Field(default=0, ge=0, le=100_000)
    """Trades per second, repeated with the present time after the recording's end; 0: none."""
    instruments: str | None = None
    """Play only instruments whose whole name matches this regular expression."""
    frame_trades: int = Field(default=100, ge=1, le=10_000)
    """Trades in a notification at most."""
    history: int = Field(default=200_000, ge=1)
    """Trades per currency that the history calls can still give; the oldest go first."""
    compression: bool = False
    """Offer permessage-deflate, as the exchange does; over loopback it only costs CPU."""
    seed: int = 0
    """For what is left to chance."""

    @property
    def pace(self) -> Pace:
        """The part of these options that is about time."""
        speed = None if self.speed == "max" else self.speed
        return Pace(speed, self.past_at_once, self.loop)


OptionsT = TypeVar("OptionsT", bound=SimulatorOptions)


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
        self.websocket_url = f"ws://{host}:{server.port}{WEBSOCKET_PATH}"
        self.rest_url = f"http://{host}:{server.port}{REST_PATH}"

    @property
    def connections(self) -> int:
        """Open websocket connections."""
        return self._server.connections

    async def played(self) -> None:
        """Return once the recording's last trade was written to every subscriber."""
        await self._server.played.wait()

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
    clock = clock or SystemClock()
    recording = trades if isinstance(trades, Recording) else Recording.of(trades)
    recording = _prepare(recording, chosen, clock)
    server = SimulatorServer(
        Exchange(recording.trades, history=chosen.history),
        Playback(recording.trades, chosen.pace),
        clock,
        host=chosen.host,
        port=chosen.port,
        frame_trades=chosen.frame_trades,
        compression=chosen.compression,
        seed=chosen.seed,
    )
    async with server:
        yield SimulatorHandle(server, recording, chosen.host)


def change_options(options: OptionsT, changes: dict[str, Any]) -> OptionsT:
    """The options with some replaced.

    Raises:
        SettingsError: One is unknown or has a wrong value.
    """
    try:
        return type(options).model_validate({**options.model_dump(), **changes})
    except ValidationError as error:
        wrong = "; ".join(
            f"{item['loc'][0]}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False)
        )
        raise SettingsError(f"wrong options of the simulator: {wrong}") from error


def _prepare(recording: Recording, options: SimulatorOptions, clock: Clock) -> Recording:
    """Filter and shift a recording as the options say.

    Raises:
        SettingsError: The expression is wrong, or no trade is left.
    """
    if options.instruments is not None:
        try:
            wanted = re.compile(options.instruments)
        except re.error as error:
            raise SettingsError(
                f"instruments '{options.instruments}' is not a regular expression: {error}"
            ) from error
        recording = recording.only(name for name in recording.instruments if wanted.fullmatch(name))
    if not recording.trades:
        raise SettingsError(
            f"the recording '{recording.name}' has no trade to play",
            remedy="choose another recording, or other instruments",
        )
    return recording.ending_at(clock.now_ms()) if options.shift_to_now else recording


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
        self.websocket_url = handle.websocket_url
        self.rest_url = handle.rest_url

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
