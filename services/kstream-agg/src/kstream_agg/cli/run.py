"""`run`, `demo`, `status`, `stop`, `reset`: the whole pipeline as one thing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.live import Live

from kstream_agg.aggregate.settings import AggProducerSettings
from kstream_agg.cli import docker_stack
from kstream_agg.cli.board import render
from kstream_agg.cli.tools import output
from kstream_agg.core.errors import StackError, UnavailableError
from kstream_agg.core.settings import ENV_PREFIX, load_settings
from kstream_agg.deribit.recording import read_recording, shipped_recording_path
from kstream_agg.deribit.settings import RawProducerSettings
from kstream_agg.deribit.simulator_service import SimulatorSettings
from kstream_agg.sinks.connectors import load_sinks
from kstream_agg.sinks.settings import ToolSettings, load_aggregator_view
from kstream_agg.stack import control
from kstream_agg.stack.docker import choose_stack, find_project, has_volumes
from kstream_agg.stack.endpoints import find_running
from kstream_agg.stack.figures import FiguresReader
from kstream_agg.stack.plan import make_plan
from kstream_agg.stack.settings import cluster_data_dir, default_data_dir, load_stack_settings
from kstream_agg.stack.table import DownloadBar

if TYPE_CHECKING:
    from rich.console import Console

    from kstream_agg.stack.settings import Kind, Profile, StackSettings
    from kstream_agg.stack.state import StackStatus

__all__ = ["demo", "reset", "run", "status", "stop"]

_READY_TIMEOUT_S: Final = 300.0
_EXCHANGE_TIMEOUT_S: Final = 30.0
_REDRAW_S: Final = 1.0
# Ports of the services whose /metrics the table of figures is made of.
_SCRAPED: Final = ("raw_producer_http", "agg_producer_http", "connectors_watch_http")
_WITHOUT_EXCHANGE: Final = (
    "without the exchange, look around with a recording: make stop, make demo"
)
# What the shipped recording holds.
_DEMO_CHANNEL: Final = "trades.option.BTC.100ms"
_DEMO_INSTRUMENT: Final = "BTC-PERPETUAL"

_detach = click.option("--detach", is_flag=True, help="Return as soon as all is ready.")
_channels = click.option("--channels", help="Channels to subscribe to, joined with commas.")


@click.command()
@_detach
@_channels
def run(*, detach: bool, channels: str | None) -> None:
    """Stream live trades: in Docker where an engine answers, else in local processes.

    STACK=local or STACK=docker forces one of them.
    """
    if _in_docker():
        _start_in_docker("live", detach=detach, channels=channels)
        return
    _start("live", detach=detach, channels=channels, options={})


@click.command()
@_detach
@_channels
@click.option(
    "--recording",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Play this recording (.csv.gz or .jsonl) instead of the shipped one.",
)
@click.option(
    "--loop",
    type=click.FloatRange(min=0),
    help="Trades per second after the recording's end; 0 plays it once.",
)
def demo(*, detach: bool, channels: str | None, recording: Path | None, loop: float | None) -> None:
    """Play a recorded session: in Docker where an engine answers, else in local processes.

    STACK=local or STACK=docker forces one of them.
    """
    click.echo("demo: every trade is simulated from a recording, and kept apart from live ones")
    if _in_docker("a recording of one's own is played there" if recording else None):
        if loop is not None:
            os.environ[f"{ENV_PREFIX}SIMULATOR__LOOP"] = f"{loop:g}"
        _start_in_docker("demo", detach=detach, channels=channels)
        return
    options = {}
    if recording is not None:
        options["recording"] = str(recording.absolute())
    if loop is not None:
        options["loop"] = f"{loop:g}"
    _start("demo", detach=detach, channels=channels, options=options)


@click.command()
def status() -> None:
    """Show components and figures; exits 0 only when all is healthy."""
    settings = load_stack_settings()
    folder = _running(settings)
    if folder is None:
        project = find_project()
        if project is None:
            raise StackError("no stack runs", remedy="start one: make run or make demo")
        docker_stack.show(project)
        return
    found = control.read_status(folder)
    with _figures_reader(folder, found) as reader:
        output().print(render(found, reader.read(), time.time()))
    if not found.is_healthy:
        raise click.exceptions.Exit(1)


@click.command()
def stop() -> None:
    """Stop the running stack; its data stays."""
    folders = _folders(load_stack_settings())
    running = [folder for folder in folders if control.read_status(folder).is_running]
    for folder in running:
        _stop(folder, output())
    if running:
        return
    project = find_project()
    if project is None:
        click.echo("no stack runs")
        return
    docker_stack.stop(project)


@click.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
def reset(*, yes: bool) -> None:
    """Remove the data of the live, the demo and the cluster stack: topics, schemas, rows."""
    settings = load_stack_settings()
    folders = [folder for folder in _folders(settings) if folder.exists()]
    volumes = settings.data_dir is None and has_volumes()
    if not folders and not volumes:
        click.echo("there is no data to remove")
        return
    if not yes:
        names = " and ".join([*map(str, folders), *(["Docker's volumes"] if volumes else [])])
        click.confirm(f"Remove {names} with all topics, schemas and rows?", abort=True)
    if volumes:
        docker_stack.remove_projects()
    for folder in folders:
        control.reset(folder)
        click.echo(f"{folder} is removed")


def _in_docker(only_local: str | None = None) -> bool:
    """Where the stack is to run; says it, and why."""
    settings = load_stack_settings()
    if only_local is None and settings.data_dir is not None:
        only_local = "a data folder is named"
    if only_local is None and _running(settings) is not None:
        only_local = "a stack of local processes runs"
    choice = choose_stack(os.environ, only_local=only_local)
    if choice.where == "docker":
        click.echo(f"Docker Compose ({choice.why}); STACK=local takes local processes")
    else:
        click.echo(f"local processes ({choice.why})")
    return choice.where == "docker"


def _start_in_docker(kind: Kind, *, detach: bool, channels: str | None) -> None:
    if channels:
        os.environ[f"{ENV_PREFIX}CHANNELS"] = channels
    _check_settings(kind)
    docker_stack.start(kind, detach=detach)


def _start(
    profile: Profile, *, detach: bool, channels: str | None, options: dict[str, str]
) -> None:
    if channels:
        os.environ[f"{ENV_PREFIX}CHANNELS"] = channels
    elif profile == "demo":
        os.environ.setdefault(f"{ENV_PREFIX}CHANNELS", _demo_channels(options.get("recording")))
    settings = load_stack_settings()
    _check_settings(profile)
    options = options | {"channels": ",".join(settings.channels)}
    folder = (settings.data_dir or default_data_dir(profile)).absolute()
    running = _running(settings)
    if running is not None and running != folder:
        raise StackError(
            f"another stack runs on {running}, on the same ports", remedy="stop it: make stop"
        )
    with DownloadBar() as bar:
        control.up(folder, make_plan(profile, settings, options=options), progress=bar)
    console = output()
    if detach:
        _wait(folder, console)
    else:
        _attend(folder, console)


def _check_settings(profile: Profile) -> None:
    """Read what each service will read, so that a wrong setting is named before anything starts.

    Raises:
        SettingsError: One is wrong.
    """
    load_settings(RawProducerSettings, "raw-producer")
    load_settings(AggProducerSettings, "agg-producer")
    if profile == "demo":
        load_settings(SimulatorSettings, "deribit-simulator")
    load_settings(ToolSettings, "tools")
    load_sinks(load_aggregator_view())


def _demo_channels(recording: str | None) -> str:
    """The demo's channels, without the one that a recording of one's own may not have."""
    path = Path(recording) if recording else shipped_recording_path()
    names = {trade["instrument_name"] for trade in read_recording(path).trades}
    instrument = [f"trades.{_DEMO_INSTRUMENT}.100ms"] if _DEMO_INSTRUMENT in names else []
    return ",".join([_DEMO_CHANNEL, *instrument])


def _wait(folder: Path, console: Console) -> None:
    with console.status("starting") as line:
        alone_since: float | None = None

        def watch(found: StackStatus) -> None:
            nonlocal alone_since
            late = [c for c in found.components if not c.is_healthy]
            line.update(f"waiting for {', '.join(c.name for c in late)}")
            if [c.name for c in late] != ["raw-producer"]:
                alone_since = None
                return
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since > _EXCHANGE_TIMEOUT_S:
                raise UnavailableError(
                    f"all is ready but the raw-producer, which goes on trying: {late[0].detail}",
                    remedy=_remedy(found, late[0].detail),
                )

        try:
            found = control.wait_ready(folder, timeout_s=_READY_TIMEOUT_S, watch=watch)
        except UnavailableError:
            found = control.read_status(folder)
            console.print(render(found, None, time.time()))
            raise
    with _figures_reader(folder, found) as reader:
        console.print(render(found, reader.read(), time.time(), _hint(found)))


def _attend(folder: Path, console: Console) -> None:
    """Show the table until Ctrl-C or SIGTERM, then stop; again stops at once."""
    leave = threading.Event()

    def ask_to_leave(signum: int, frame: object) -> None:
        del signum, frame
        if leave.is_set():
            supervisor = control.read_status(folder).supervisor
            if supervisor is not None:
                os.kill(supervisor.pid, signal.SIGTERM)
        leave.set()

    signal.signal(signal.SIGINT, ask_to_leave)
    signal.signal(signal.SIGTERM, ask_to_leave)
    first = control.read_status(folder)
    with (
        _figures_reader(folder, first) as reader,
        Live(console=console, auto_refresh=False) as live,
    ):
        while not leave.is_set():
            found = control.read_status(folder)
            if not found.is_running:
                break
            live.update(render(found, reader.read(), time.time(), _hint(found)), refresh=True)
            leave.wait(_REDRAW_S)
    if not leave.is_set():
        console.print("the stack was stopped from elsewhere")
        return
    _stop(folder, console)


def _stop(folder: Path, console: Console) -> None:
    with console.status("stopping") as line:

        def watch(found: StackStatus) -> None:
            left = [c.name for c in found.components if c.state != "stopped"]
            line.update(f"stopping {', '.join(left)} (Ctrl-C again: at once)")

        killed = control.down(folder, watch=watch)
    for name in killed:
        console.print(f"{name} had to be killed")
    console.print(f"the stack on {folder} is stopped; its data stays")


def _hint(found: StackStatus) -> str:
    lines = []
    for component in found.components:
        if component.name == "raw-producer" and not component.is_healthy and component.detail:
            lines.append(f"raw-producer: {component.detail}")
            remedy = _remedy(found, component.detail)
            if remedy:
                lines.append(remedy)
    lines.append(
        'look: .venv/bin/kstream-agg sql "SELECT * FROM trades_option_btc_ewma_5min LIMIT 5"'
    )
    return "\n".join(lines)


def _remedy(found: StackStatus, detail: str) -> str | None:
    no_exchange = found.profile == "live" and "exchange" in detail and "session" in detail
    return _WITHOUT_EXCHANGE if no_exchange else None


def _figures_reader(folder: Path, found: StackStatus) -> FiguresReader:
    ports = {name: port for c in found.components for name, port in c.ports.items()}
    http = [ports[name] for name in _SCRAPED if name in ports]
    endpoints = find_running(folder)
    if endpoints is not None:
        os.environ.update(endpoints.environment)
    tools = load_settings(ToolSettings, "tools")
    topics = [*tools.raw_topics, *load_aggregator_view().average_topics]
    return FiguresReader(http, tools.postgres, topics, time.monotonic)


def _folders(settings: StackSettings) -> list[Path]:
    if settings.data_dir is not None:
        return [settings.data_dir.absolute()]
    return [default_data_dir("live"), default_data_dir("demo"), cluster_data_dir()]


def _running(settings: StackSettings) -> Path | None:
    for folder in _folders(settings):
        if control.read_status(folder).is_running:
            return folder
    return None
