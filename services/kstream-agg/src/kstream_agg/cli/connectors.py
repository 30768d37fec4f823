"""`kstream-agg connectors`: the sinks in Kafka Connect."""

from __future__ import annotations

import sys
import threading

import click
from rich.table import Table

from kstream_agg.cli.tools import open_tools, output
from kstream_agg.core.clock import SystemClock
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import load_settings
from kstream_agg.sinks.connect_api import ConnectClient, ConnectorStatus
from kstream_agg.sinks.connectors import apply, load_sinks
from kstream_agg.sinks.patience import Patience
from kstream_agg.sinks.settings import WATCH, WatchSettings
from kstream_agg.sinks.watch import run_watch

__all__ = ["connectors"]


@click.group()
def connectors() -> None:
    """Apply, look at and watch the sinks to Postgres."""


@connectors.command("apply")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), default=180.0, show_default=True,
    help="Longest wait in seconds until all is there and runs.",
)  # fmt: skip
def apply_command(timeout_s: float) -> None:
    """Create tables and topics, give Connect the sinks' configuration, wait until they run.

    Reads config/raw-consumer-jdbc-sink/raw-pg.json and config/agg-consumer-jdbc-sink/agg-pg.json.
    Running it again changes nothing where nothing has changed.
    """
    settings, aggregator = open_tools("connectors")
    patience = Patience(SystemClock(), threading.Event(), timeout_s)
    with ConnectClient(settings.connect.url, settings.connect.timeout_s) as client:
        found = apply(load_sinks(aggregator), settings, client, patience)
    _show(found)


@connectors.command("status")
def status_command() -> None:
    """Print the sinks' states; exit code 1 when one does not run."""
    settings, aggregator = open_tools("connectors")
    with ConnectClient(settings.connect.url, settings.connect.timeout_s) as client:
        found = [client.status(sink.name) for sink in load_sinks(aggregator)]
    _show(found)
    if not all(status.is_running for status in found):
        sys.exit(1)


@connectors.command("watch")
def watch_command() -> None:
    """Run the watch: bring sinks back that failed, and set rows aside that the database refuses.

    Settings: config/connectors-watch/default.toml and KSTREAM__… variables. Runs until Ctrl-C.
    """
    _, aggregator = open_tools("connectors")
    settings = load_settings(WatchSettings, WATCH)
    with run_service(WATCH, settings) as context:
        run_watch(settings, load_sinks(aggregator), context)


def _show(found: list[ConnectorStatus]) -> None:
    table = Table("connector", "state", "tasks", "why")
    for status in found:
        tasks = ", ".join(f"{task.number}: {task.state}" for task in status.tasks)
        table.add_row(status.name, status.state, tasks or "none", status.failure or "")
    output().print(table)
