"""`kstream-agg batch-sink`: Kafka to ClickHouse, and the check of what it has written."""

# ruff: noqa: PLC0415 - a command must not pay for the imports of the others

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kstream_agg.verify.batch_sink import OffsetsCheck

__all__ = ["batch_sink"]

_SENTENCES = {
    0: "[green]no offset is missing, none is there twice[/green]",
    1: "[red]offsets are missing, or there twice[/red]",
    2: "[yellow]nothing to compare: the sink has committed nothing yet[/yellow]",
}


@click.group("batch-sink", invoke_without_command=True)
@click.pass_context
def batch_sink(ctx: click.Context) -> None:
    """Run the sink to ClickHouse: topics in batches, until it is asked to stop.

    Settings: config/batch-sink/default.toml and KSTREAM__… variables.
    """
    if ctx.invoked_subcommand is not None:
        return
    from kstream_agg.core.settings import load_settings
    from kstream_agg.sinks.batch_sink import SERVICE, BatchSinkSettings, run_batch_sink

    run_batch_sink(load_settings(BatchSinkSettings, SERVICE))


@batch_sink.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(*, as_json: bool) -> None:
    """Are offsets missing in ClickHouse, are any there twice?

    Compared is everything before the sink's committed offsets. Exit code 0: neither; 1: one of
    them, or something does not answer; 2: nothing was committed yet.
    """
    from kstream_agg.cli.tools import open_tools
    from kstream_agg.core.settings import load_settings
    from kstream_agg.kafka.topic_reader import TopicReader
    from kstream_agg.sinks.batch_sink import SERVICE, BatchSinkSettings
    from kstream_agg.sinks.clickhouse import ClickHouse
    from kstream_agg.verify.batch_sink import OffsetsCheck, check_topic

    open_tools(SERVICE)
    settings = load_settings(BatchSinkSettings, SERVICE)
    with ClickHouse(settings.clickhouse) as client, TopicReader(settings.kafka) as reader:
        there = {part.topic for part in reader.spans(settings.topics)}
        for topic in settings.topics:
            if topic not in there:
                click.echo(f"there is no topic '{topic}'", err=True)
        result = OffsetsCheck(
            tuple(
                report
                for topic in settings.topics
                for report in check_topic(
                    client, reader, topic, settings.table(topic), settings.sink.group_id
                )
            )
        )
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _show(result)
    sys.exit(result.exit_code)


def _show(result: OffsetsCheck) -> None:
    from rich.table import Table

    from kstream_agg.cli.tools import output

    table = Table(
        "topic", "partition", "offsets", "rows", "missing", "twice", "merged on read",
        "no records", "dead letters",
    )  # fmt: skip
    for item in result.partitions:
        span = f"{item.begin} to {item.committed - 1}"
        figures = (item.rows, item.missing, item.twice, item.unmerged, item.no_records)
        table.add_row(
            item.topic, str(item.partition), span, *map(str, figures), str(item.dead_letters)
        )
    console = output()
    if result.partitions:
        console.print(table)
    for item in result.partitions:
        if item.examples:
            shown = ", ".join(map(str, item.examples))
            console.print(f"{item.topic}/{item.partition}: missing are {shown}, …", markup=False)
    console.print(_SENTENCES[result.exit_code])
