"""Showing a stack to people: its status as a table, downloads as a bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from kstream_agg.stack.state import ComponentStatus, StackStatus

__all__ = ["DownloadBar", "status_table"]

_COLOURS = {"ready": "green", "done": "green", "backoff": "red", "unhealthy": "red"}


def status_table(status: StackStatus, now: float | None = None) -> Table:
    """The components of a stack, one a row.

    Args:
        status: What to show.
        now: The time (s, epoch); default the present.
    """
    moment = time.time() if now is None else now
    title = f"{status.profile} stack" if status.profile else "no stack"
    if not status.is_running:
        title += ", not running"
    elif status.stopping:
        title += ", stopping"
    table = Table(title=title, title_justify="left")
    for name in ("component", "state", "for", "restarts", "pid", "address", ""):
        table.add_column(name, overflow="fold")
    for component in status.components:
        colour = _COLOURS.get(component.state, "yellow")
        table.add_row(
            component.name,
            f"[{colour}]{component.state}[/]",
            _duration(moment - component.since),
            str(component.restarts),
            str(component.process.pid) if component.process else "",
            component.address,
            _detail(component, moment),
        )
    return table


def _detail(component: ComponentStatus, moment: float) -> str:
    if component.next_start is None:
        return component.detail
    wait = max(0.0, component.next_start - moment)
    return f"{component.detail}; starts again in {wait:.0f} s"


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class DownloadBar:
    """A progress bar that appears when there is something to download; a context manager."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            "[progress.description]{task.description}",
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        )

    def start(self, files: int, size: int) -> None:
        """So many files and bytes are to be fetched."""
        self._bar.start()
        self._task = self._bar.add_task(f"fetching {files} files", total=size)

    def advance(self, size: int) -> None:
        """So many bytes have come."""
        self._bar.advance(self._task, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
