"""The live status table: components, figures, addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kstream_agg.stack.table import status_table

if TYPE_CHECKING:
    from kstream_agg.stack.figures import Figures
    from kstream_agg.stack.state import StackStatus

__all__ = ["figures_table", "render"]


def render(status: StackStatus, figures: Figures | None, now_s: float, hint: str = "") -> Group:
    """The table as rich draws it.

    Args:
        status: The stack's components.
        figures: What the pipeline has done; None leaves that part out.
        now_s: Seconds since the epoch.
        hint: A line below the tables.
    """
    parts: list[Table | Text] = [status_table(status, now_s)]
    if figures is not None:
        parts.append(figures_table(figures))
    if hint:
        parts.append(Text(hint, style="dim"))
    return Group(*parts)


def figures_table(figures: Figures) -> Table:
    """What the pipeline has done, a line each."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("exchange session", _session(figures))
    rate = "" if figures.trades_per_s is None else f" ({figures.trades_per_s:,.1f}/s)"
    table.add_row("trades received", _number(figures.trades_received) + rate)
    table.add_row("aggregator behind", _number(figures.records_behind, " records"))
    emitted, held = _number(figures.windows_emitted), _number(figures.windows_open)
    table.add_row("window results", f"{emitted} emitted, {held} windows open")
    table.add_row(
        "set aside", f"{_number(figures.late)} late, {_number(figures.dead_letters)} dead letters"
    )
    for name, count in (figures.rows or {}).items():
        about = "about " if count < 0 else ""
        table.add_row(f"rows in {name}", f"{about}{abs(count):,}")
    if figures.rows is None:
        table.add_row("rows in Postgres", "-")
    return table


def _session(figures: Figures) -> str:
    if figures.session_up is None:
        return "-"
    if not figures.session_up:
        return "down: trying again"
    if figures.source_lag_s is None:
        return "up"
    return f"up, last trade {figures.source_lag_s:,.2f} s old on arrival"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.0f}{unit}"
