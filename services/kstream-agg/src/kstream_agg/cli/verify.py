"""`kstream-agg verify`: recompute everything and compare."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING

import click
from rich.table import Table

from kstream_agg.cli.tools import open_tools, output
from kstream_agg.core.clock import SystemClock
from kstream_agg.sinks.connectors import load_sinks
from kstream_agg.sinks.patience import Patience
from kstream_agg.verify.run import verify as run_verify

if TYPE_CHECKING:
    from rich.console import Console

    from kstream_agg.verify.report import Report

__all__ = ["verify"]

_SENTENCES = {
    0: "[green]all equal[/green]",
    1: "[red]there are differences[/red]",
    2: "[yellow]nothing to compare: no trade or no closed window yet[/yellow]",
}


@click.command()
@click.option("--wait", "wait_for_window", is_flag=True, help="First wait for a closed window.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=120.0, show_default=True,
    help="Longest wait in seconds for aggregator and sinks to pass the raw topic's end.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(*, wait_for_window: bool, timeout_s: float, as_json: bool) -> None:
    """Recompute all averages from the raw topic by independent code; compare topics and tables.

    Exit code 0: all equal; 1: a difference, or something does not answer; 2: no trade or no
    closed window was there to compare.
    """
    settings, aggregator = open_tools("verify")
    patience = Patience(SystemClock(), threading.Event(), timeout_s)
    report = run_verify(
        settings,
        aggregator,
        load_sinks(aggregator),
        patience,
        wait_for_window=wait_for_window,
    )
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report, output())
    sys.exit(report.exit_code)


def _show(report: Report, console: Console) -> None:
    table = Table("topic", "check", "compared", "differences", "not compared")
    for check in report.checks:
        notes = "\n".join(f"{count} {what}" for what, count in check.notes.items())
        table.add_row(check.topic, check.name, str(check.compared), str(check.differences), notes)
    console.print(table)
    for check in report.checks:
        for example in check.examples:
            console.print(f"{check.topic}: {example}", markup=False, soft_wrap=True)
        if check.differences > len(check.examples) > 0:
            more = check.differences - len(check.examples)
            console.print(f"{check.topic}: … and {more} more", markup=False)
    console.print(_SENTENCES[report.exit_code])
