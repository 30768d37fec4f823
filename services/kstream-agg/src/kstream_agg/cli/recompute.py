"""`kstream-agg recompute`: emit old windows again, from the raw topic."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from kstream_agg.aggregate.recomputation import Wanted
from kstream_agg.aggregate.recompute import Outcome
from kstream_agg.aggregate.recompute import recompute as run_recompute
from kstream_agg.aggregate.settings import AggProducerSettings
from kstream_agg.cli.backfill import parse_time
from kstream_agg.cli.tools import open_tools, output
from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.core.names import channel_topic
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import HttpSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["recompute"]


@click.command()
@click.option("--from", "start", required=True, help="ISO 8601, e.g. 2026-11-01T08:00; UTC.")
@click.option("--to", "end", required=True, help="ISO 8601; UTC.")
@click.option("--channel", help="Only this one of the settings' channels.")
@click.option("--topic", help="The same, by its raw topic.")
@click.option("--instrument", "instruments", multiple=True, help="Only this one; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def recompute(  # noqa: PLR0913 - a command's options
    start: str,
    end: str,
    channel: str | None,
    topic: str | None,
    instruments: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Emit the windows of a period again, from the raw topic, late trades included.

    For windows older than the aggregator's retention, after a backfill: trades that came too late
    for it stand in the raw topic. Windows whose record says the same already are left alone.
    Exit code 0: every window is what its trades make; 1: some are not, for their trades are not
    all there any more, or an error; 2: there is no such window.
    """
    tools, _ = open_tools("recompute")
    wanted = Wanted(parse_time(start), parse_time(end), frozenset(instruments))
    if wanted.from_ms >= wanted.to_ms:
        raise SettingsError("--from must be before --to")
    settings = load_settings(AggProducerSettings, "agg-producer")
    raw_topics = _pick(settings, channel, topic)
    # Not the aggregator's port and level of logs, which are in use by itself.
    settings = settings.model_copy(
        update={"http": HttpSettings(), "log": tools.log.model_copy(update={"level": "warning"})}
    )
    outcomes: list[Outcome] = []
    with (
        run_service("recompute", settings) as context,
        Progress(console=Console(stderr=True)) as progress,
    ):
        for raw_topic in raw_topics:
            task = progress.add_task(raw_topic, total=None)

            def show(read: int, total: int, task: object = task) -> None:
                progress.update(task, completed=read, total=total)  # type: ignore[arg-type]  # a TaskID

            found = run_recompute(settings, context, raw_topic, wanted, show)
            if found is None:
                raise UnavailableError("stopped before the end", remedy="repeat it: it goes on")
            outcomes += found
    _report(outcomes, as_json=as_json)
    if not any(outcome.windows for outcome in outcomes):
        sys.exit(2)
    sys.exit(1 if any(outcome.lacking for outcome in outcomes) else 0)


def _pick(settings: AggProducerSettings, channel: str | None, topic: str | None) -> Sequence[str]:
    wanted = channel_topic(channel) if channel else topic
    if channel and topic and wanted != topic:
        raise SettingsError("--channel and --topic name different topics", remedy="give one")
    if wanted is None:
        return settings.raw_topics
    if wanted not in settings.raw_topics:
        raise SettingsError(
            f"the aggregator does not read '{wanted}'",
            remedy=f"it reads: {', '.join(settings.raw_topics)}",
        )
    return [wanted]


def _report(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    if as_json:
        names = ("topic", "written", "same", "lacking")
        lines = [{name: getattr(outcome, name) for name in names} for outcome in outcomes]
        click.echo(json.dumps(lines, indent=2))
        return
    table = Table("topic")
    for title in ("emitted again", "already right", "trades no longer there"):
        table.add_column(title, justify="right")
    for outcome in outcomes:
        table.add_row(outcome.topic, str(outcome.written), str(outcome.same), str(outcome.lacking))
    console = output()
    console.print(table)
    if not any(outcome.windows for outcome in outcomes):
        console.print("there is no trade in this period")
    elif not any(outcome.written for outcome in outcomes):
        console.print("nothing is emitted: no window differs from what its trades make")
