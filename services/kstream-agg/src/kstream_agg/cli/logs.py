"""`kstream-agg logs` and `ps`: of whichever stack runs."""

from __future__ import annotations

import os

import click

from kstream_agg.cli.stack import logs as local_logs
from kstream_agg.cli.stack import status as local_status
from kstream_agg.stack.docker import find_project
from kstream_agg.stack.endpoints import find_running

__all__ = ["logs", "ps"]

_LINES = 40


@click.command()
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@click.pass_context
def logs(ctx: click.Context, service: str | None, *, follow: bool) -> None:
    """Show the end of a service's log; without SERVICE of all of them (local: the supervisor's)."""
    project = None if find_running() is not None else find_project()
    if project is None:
        ctx.invoke(local_logs, component=service, following=follow, lines=_LINES, data_dir=None)
        return
    arguments = ["logs", "--tail", str(_LINES), *(["--follow"] if follow else [])]
    command = project.command(*arguments, *([service] if service else []))
    os.execvp(command[0], command)  # noqa: S606 - docker takes over the terminal


@click.command()
@click.pass_context
def ps(ctx: click.Context) -> None:
    """List the parts of the running stack, and how they are."""
    project = None if find_running() is not None else find_project()
    if project is None:
        ctx.invoke(local_status, as_json=False, data_dir=None)
        return
    command = project.command("ps", "--all")
    os.execvp(command[0], command)  # noqa: S606 - docker takes over the terminal
