"""`kstream-agg stack`: the local stack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import pydantic
from rich.console import Console

from kstream_agg.core.errors import SettingsError, StackError
from kstream_agg.core.logs import configure_logging
from kstream_agg.core.settings import LogSettings
from kstream_agg.stack import control
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.download import Fetcher
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.logfiles import follow, tail
from kstream_agg.stack.plan import make_plan
from kstream_agg.stack.run import run_supervisor
from kstream_agg.stack.settings import default_data_dir, load_stack_settings
from kstream_agg.stack.table import DownloadBar, status_table
from kstream_agg.stack.unpack import export_group

if TYPE_CHECKING:
    from kstream_agg.stack.settings import Profile, StackSettings
    from kstream_agg.stack.state import StackStatus

__all__ = ["shift_ports", "stack"]

_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The stack's data folder; default: the running one of .data/live and .data/demo.",
)


@click.group()
def stack() -> None:
    """The local stack: Kafka, registry, Connect, Postgres and Zipkin as local processes."""


@stack.command()
@click.option("--profile", type=click.Choice(["base", "live", "demo"]), default="base")
@click.option("--only", default="", help="Not all components, but these, joined with commas.")
@click.option("--port-offset", type=int, default=0, help="Add this to every port.")
@click.option("--timeout", type=float, default=300.0, help="Seconds to wait until all is ready.")
@click.option("--wait/--no-wait", default=True, help="Return when all is ready, or at once.")
@_data_dir
def up(  # noqa: PLR0913 - each option of a command is an argument
    *,
    profile: Profile,
    only: str,
    port_offset: int,
    timeout: float,
    wait: bool,
    data_dir: Path | None,
) -> None:
    """Start the stack and wait until it is ready."""
    settings = shift_ports(load_stack_settings(), port_offset)
    folder = (data_dir or settings.data_dir or default_data_dir(profile)).absolute()
    names = tuple(filter(None, (name.strip() for name in only.split(","))))
    with DownloadBar() as bar:
        orphans = control.up(folder, make_plan(profile, settings, only=names), progress=bar)
    for name in orphans:
        click.echo(f"ended {name}, left over from a supervisor that was killed", err=True)
    if not wait:
        click.echo(f"started on {folder}; 'kstream-agg stack status' shows how it is")
        return
    console = _console()
    with console.status("starting") as line:

        def watch(status: StackStatus) -> None:
            late = [c.name for c in status.components if not c.is_healthy]
            line.update(f"waiting for {', '.join(late)}")

        status = control.wait_ready(folder, timeout_s=timeout, watch=watch)
    console.print(status_table(status))


@stack.command()
@_data_dir
def down(*, data_dir: Path | None) -> None:
    """End the stack; no process of it stays, no write is lost."""
    folder = _find(data_dir)
    if not control.read_status(folder).components:
        click.echo(f"no stack runs on {folder}")
        return
    for name in control.down(folder):
        click.echo(f"{name} had to be killed", err=True)
    click.echo(f"the stack on {folder} is down")


@stack.command()
@click.option("--json", "as_json", is_flag=True, help="The status as JSON.")
@_data_dir
def status(*, as_json: bool, data_dir: Path | None) -> None:
    """Show the components; exits 0 only when all of them are healthy."""
    found = control.read_status(_find(data_dir))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _console().print(status_table(found))
    if not found.is_healthy:
        raise click.exceptions.Exit(1)


@stack.command()
@click.argument("component", required=False)
@click.option("-f", "--follow", "following", is_flag=True, help="Go on as lines come.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=40, help="How many lines.")
@_data_dir
def logs(*, component: str | None, following: bool, lines: int, data_dir: Path | None) -> None:
    """Show the end of a component's log, of the supervisor's without COMPONENT."""
    folder = _find(data_dir)
    name = component or "supervisor"
    if name != "supervisor":
        control.read_status(folder).component(name)
    log = Layout(folder).log(name)
    for line in tail(log, lines):
        click.echo(line)
    if following:
        try:
            for line in follow(log):
                click.echo(line)
        except KeyboardInterrupt:
            return


@stack.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
@_data_dir
def reset(*, yes: bool, data_dir: Path | None) -> None:
    """Remove the stack's data: topics, schemas, rows."""
    folder = _find(data_dir)
    if not yes:
        click.confirm(f"Remove {folder} with all its topics, schemas and rows?", abort=True)
    control.reset(folder)
    click.echo(f"{folder} is removed")


@stack.command(name="clean-cache")
def clean_cache() -> None:
    """Remove the downloaded components from the user's cache folder."""
    cache = ArtifactCache()
    removed = cache.clear()
    click.echo(f"{cache.folder} is {'removed' if removed else 'not there'}")


@stack.command()
@click.argument("groups", nargs=-1, required=True)
@click.option(
    "--into",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Copy each group to a folder in here, unpacked.",
)
def fetch(groups: tuple[str, ...], into: Path) -> None:
    """Fetch pinned Java files, checked against the lock, for an image or another machine.

    GROUPS are names of the lock: kafka, registry, zipkin, jmx-exporter, …
    """
    cache = ArtifactCache()
    unknown = sorted(set(groups) - set(cache.groups))
    if unknown:
        raise StackError(
            f"the lock has no group '{unknown[0]}'", remedy=f"it has: {', '.join(cache.groups)}"
        )
    repository = load_stack_settings().artifacts.repository
    with DownloadBar() as bar:
        cache.ensure(groups, Fetcher(repository), bar)
    for group in groups:
        click.echo(export_group(cache, group, into))


@stack.command(hidden=True)
@click.argument("data_dir", type=click.Path(path_type=Path))
def supervise(data_dir: Path) -> None:
    """Be the supervisor of a data folder; `stack up` starts it."""
    # Once more apart from whoever called: it is nobody's child to wait for.
    if os.fork() != 0:
        os._exit(0)
    configure_logging(LogSettings(format="json"), "stack")
    run_supervisor(data_dir)


def _console() -> Console:
    """Wide enough where no terminal tells how wide."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def shift_ports(settings: StackSettings, offset: int) -> StackSettings:
    """The settings with all ports `offset` higher.

    Raises:
        SettingsError: One of them is no port any more.
    """
    try:
        return settings.model_copy(update={"ports": settings.ports.shifted(offset)})
    except pydantic.ValidationError as error:
        raise SettingsError(
            f"--port-offset {offset} makes ports outside 1…65535",
            remedy="take a smaller one, such as 20000",
        ) from error


def _find(data_dir: Path | None) -> Path:
    """The folder that is meant: the named one, else the running stack's, else the live one's."""
    chosen = data_dir or load_stack_settings().data_dir
    if chosen is not None:
        return chosen.absolute()
    live, demo = default_data_dir("live"), default_data_dir("demo")
    return demo if control.read_status(demo).is_running else live
