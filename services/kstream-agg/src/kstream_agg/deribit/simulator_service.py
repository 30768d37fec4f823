"""The deribit-simulator service: settings, and the simulator under the service's care."""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003 - pydantic needs it when the class is made
from typing import TYPE_CHECKING, Final

from pydantic import Field

from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import SIMULATOR_CONNECTIONS, SIMULATOR_TRADES
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import ServiceSettings
from kstream_agg.deribit.recording import Recording, read_recording, shipped_recording_path
from kstream_agg.deribit.simulator import SimulatorHandle, SimulatorOptions, running_simulator

if TYPE_CHECKING:
    from kstream_agg.core.service import ServiceContext

__all__ = [
    "SERVICE",
    "ServiceOptions",
    "SimulatorSettings",
    "load_recording",
    "run_simulator_service",
]

SERVICE: Final = "deribit-simulator"

_log = get_logger(__name__)

# BTC-25JUN27, the third part of the shipped recording, would be a topic of its own.
_SHIPPED_INSTRUMENTS: Final = "BTC-PERPETUAL|.+-[CP]"


class ServiceOptions(SimulatorOptions):
    """`[simulator]`: what is played, how, and where."""

    port: int = Field(default=8090, ge=0, lt=65536)
    recording: Path | None = None
    """A recording's file; default: the one that comes with the package."""


class SimulatorSettings(ServiceSettings):
    """Settings of the service, in `config/deribit-simulator/default.toml`."""

    simulator: ServiceOptions = ServiceOptions()


def load_recording(options: ServiceOptions) -> tuple[Recording, ServiceOptions]:
    """Read the recording that the options name, and complete them for the shipped one.

    Raises:
        SettingsError: The file cannot be read or is of no known kind.
        ContractError: What it holds is wrong.
    """
    if options.recording is not None:
        return read_recording(options.recording), options
    recording = read_recording(shipped_recording_path())
    if options.instruments is None:
        options = options.model_copy(update={"instruments": _SHIPPED_INSTRUMENTS})
    return recording, options


def run_simulator_service(settings: SimulatorSettings, options: ServiceOptions) -> None:
    """Run the service until it is asked to stop.

    Args:
        settings: Logs, metrics and health.
        options: What is played: the settings' table, perhaps changed on the command line.

    Raises:
        KStreamError: The recording, an option or the address is no good.
    """
    recording, options = load_recording(options)
    with run_service(SERVICE, settings) as context:
        asyncio.run(_serve(context, recording, options))


async def _serve(context: ServiceContext, recording: Recording, options: ServiceOptions) -> None:
    async with running_simulator(recording, options=options, clock=context.clock) as simulator:
        _log.warning(
            "simulated exchange: these are recorded trades, not the market",
            recording=simulator.recording.name,
            trades=len(simulator.recording.trades),
            instruments=len(simulator.recording.instruments),
            left_out=len(recording.trades) - len(simulator.recording.trades),
            ignored_lines=recording.ignored,
            repeated=recording.repeated,
            websocket=simulator.websocket_url,
            rest=simulator.rest_url,
        )
        _count(context, simulator)
        context.health.set_ready()
        await _until_stopped(context, simulator)


def _count(context: ServiceContext, simulator: SimulatorHandle) -> None:
    published = context.metrics.gauge(SIMULATOR_TRADES)
    published.set_function(lambda: simulator.exchange.published)
    context.metrics.gauge(SIMULATOR_CONNECTIONS).set_function(lambda: simulator.connections)


async def _until_stopped(context: ServiceContext, simulator: SimulatorHandle) -> None:
    asked = asyncio.create_task(asyncio.to_thread(context.stop.wait))
    playing = asyncio.create_task(simulator.run())
    try:
        await asyncio.wait({asked, playing}, return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            playing.result()
    finally:
        context.stop.set()  # lets the waiting thread end
        playing.cancel()
        await asked
