"""`kstream-agg doctor`: what this machine lacks."""

from __future__ import annotations

import os

import click
from rich.console import Console
from rich.table import Table

from kstream_agg.stack.control import read_status
from kstream_agg.stack.doctor import examine, examine_docker
from kstream_agg.stack.settings import default_data_dir, load_stack_settings

__all__ = ["doctor"]


@click.command()
def doctor() -> None:
    """Check Python, programs, disk, memory and ports; exits 1 when something is missing."""
    settings = load_stack_settings()
    folders = [settings.data_dir or default_data_dir("live"), default_data_dir("demo")]
    running = any(read_status(folder).is_running for folder in folders)
    checks = [*examine(settings, folders[0], running=running), *examine_docker(os.environ)]
    table = Table("", "check", "found", "remedy")
    for check in checks:
        mark = "[green]ok[/]" if check.is_good else "[red]no[/]"
        table.add_row(mark, check.what, check.found, check.remedy or "")
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    if not all(check.is_good for check in checks):
        raise click.exceptions.Exit(1)
