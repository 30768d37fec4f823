"""`run`, `demo`, `status`, `stop`, `reset` for the stack in Docker Compose."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table

from kstream_agg.cli.board import figures_table
from kstream_agg.cli.tools import output
from kstream_agg.core.errors import StackError, UnavailableError
from kstream_agg.core.settings import load_settings
from kstream_agg.sinks.settings import ToolSettings, load_aggregator_view
from kstream_agg.stack.docker import find_project, project_of
from kstream_agg.stack.figures import FiguresReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.stack.docker import ComposeProject, Container
    from kstream_agg.stack.settings import Kind

__all__ = ["remove_projects", "show", "start", "stop"]

_READY_S: Final = 300
_REDRAW_S: Final = 2.0
_FIGURES_PORT: Final = 9100
# Service, its port in the container, and what to see there.
_PAGES: Final = (
    ("grafana", 3000, "the pipeline's dashboard"),
    ("redpanda-console", 8080, "topics with decoded records, schemas, consumer groups, connectors"),
    ("akhq", 8080, "the same in another dress; live tail of a topic"),
    ("pgadmin", 5050, "the tables in Postgres: Servers, kstream-agg, Databases, raw"),
    ("zipkin", 9411, "traces: a trade from the websocket's frame to its window"),
    ("prometheus", 9090, "all metrics; Status, Targets"),
    ("push-proxy", 4242, "POST /push; /docs to try it"),
)


def start(kind: Kind, *, detach: bool) -> None:
    """Build and start the project, wait until it is healthy, show where to look.

    Raises:
        StackError: Another of the checkout's projects runs, or Compose fails.
        UnavailableError: Some containers do not get healthy; they go on trying.
    """
    project = project_of(kind)
    running = find_project()
    if running is not None and running.name != project.name:
        raise StackError(
            f"the project {running.name} runs, on the same ports", remedy="stop it: make stop"
        )
    _up(project)
    console = output()
    containers = project.containers()
    if detach:
        with _reader(project, containers) as reader:
            console.print(_board(containers, reader))
        console.print(_pages(containers))
        return
    console.print(_pages(containers))
    leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    with _reader(project, containers) as reader, Live(console=console, auto_refresh=False) as live:
        while not leave.is_set():
            live.update(_board(project.containers(), reader), refresh=True)
            leave.wait(_REDRAW_S)
    stop(project)


def _up(project: ComposeProject) -> None:
    try:
        project.run("up", "--detach", "--build", "--wait", "--wait-timeout", str(_READY_S))
    except StackError as error:
        late = [each.service for each in project.containers() if not each.is_healthy]
        if not late:
            raise
        remedy = f"make logs s={late[0]}"
        if late == ["raw-producer"] and project.kind == "live":
            remedy += "; without the exchange, look around with a recording: make stop, make demo"
        raise UnavailableError(f"not healthy: {', '.join(late)}", remedy=remedy) from error


def show(project: ComposeProject) -> None:
    """Print containers and figures; exits 1 unless all are healthy."""
    containers = project.containers()
    with _reader(project, containers) as reader:
        output().print(_board(containers, reader))
    output().print(_pages(containers))
    if not all(container.is_healthy for container in containers):
        raise click.exceptions.Exit(1)


def stop(project: ComposeProject) -> None:
    """End and remove the containers; the volumes, and with them all data, stay."""
    project.run("down", "--remove-orphans")
    click.echo(f"the project {project.name} is stopped; its volumes stay")


def remove_projects() -> None:
    """Remove containers and volumes of the live and the demo project."""
    for kind in ("live", "demo"):
        project = project_of(kind)
        project.run("down", "--volumes", "--remove-orphans", quiet=True)
        click.echo(f"the project {project.name} is removed, with its volumes")


def _board(containers: Sequence[Container], reader: FiguresReader) -> Group:
    table = Table(title="in Docker Compose", title_justify="left")
    for name in ("container", "state", "", "ports on this machine"):
        table.add_column(name, overflow="fold")
    for each in sorted(containers, key=lambda container: container.name):
        colour = "green" if each.is_healthy else "yellow"
        ports = ", ".join(str(port) for port in each.ports.values())
        table.add_row(each.name, f"[{colour}]{each.health or each.state}[/]", each.status, ports)
    return Group(table, figures_table(reader.read()))


def _pages(containers: Sequence[Container]) -> Table:
    table = Table("look at", "what to see", box=None)
    found = {container.service: container for container in containers}
    for service, port, what in _PAGES:
        if service in found and port in found[service].ports:
            table.add_row(f"http://127.0.0.1:{found[service].ports[port]}", f"{service}: {what}")
    return table


def _reader(project: ComposeProject, containers: Sequence[Container]) -> FiguresReader:
    os.environ.update(project.environment())
    ports = [
        each.ports[_FIGURES_PORT]
        for each in containers
        if each.service in ("raw-producer", "agg-producer") and _FIGURES_PORT in each.ports
    ]
    tools = load_settings(ToolSettings, "tools")
    topics = [*tools.raw_topics, *load_aggregator_view().average_topics]
    return FiguresReader(ports, tools.postgres, topics, time.monotonic)
