"""`kstream-agg deribit-simulator`: play a recording through the exchange's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kstream_agg.core.settings import load_settings
from kstream_agg.deribit.simulator import change_options
from kstream_agg.deribit.simulator_service import (
    SERVICE,
    SimulatorSettings,
    run_simulator_service,
)

if TYPE_CHECKING:
    from kstream_agg.deribit.simulator_service import ServiceOptions

__all__ = ["deribit_simulator"]


@click.command("deribit-simulator")
@click.option(
    "--recording", type=click.Path(path_type=Path), help="A .csv.gz or .jsonl file of trades."
)
@click.option("--speed", help="1 as recorded, N times faster, or max: as fast as it is read.")
@click.option(
    "--shift-to-now/--keep-timestamps",
    default=None,
    help="Move the timestamps so that the recording ends now.",
)
@click.option(
    "--past-at-once/--paced-past",
    default=None,
    help="Send what lies in the past as fast as it is read.",
)
@click.option(
    "--loop", type=float, help="Trades per second after the recording's end; 0 plays it once."
)
@click.option("--instruments", help="Play only names that match this regular expression.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
@click.option("--frame-trades", type=int, help="Trades in a notification at most.")
@click.option("--compression/--no-compression", default=None, help="Offer permessage-deflate.")
@click.option("--seed", type=int, help="Seed of what is left to chance.")
@click.option(
    "--scenario",
    type=click.Path(path_type=Path),
    help="A TOML file of what goes wrong: docs/raw-producer.md.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="A file that lets the next start go on where this one ends.",
)
def deribit_simulator(**given: object) -> None:
    """Run a simulated exchange: a recording behind the exchange's websocket and REST calls.

    Options not given come from config/deribit-simulator/default.toml: they play the recording
    that comes with the package as if it ended now, then repeat it at 20 trades/s.
    """
    settings = load_settings(SimulatorSettings, SERVICE)
    changes = {name: value for name, value in given.items() if value is not None}
    options: ServiceOptions = change_options(settings.simulator, changes)
    run_simulator_service(settings, options)
