"""`kstream-agg topics`: what topics there are, making, changing and removing them."""

from __future__ import annotations

from collections import defaultdict

import click
from rich.table import Table

from kstream_agg.cli.kafka_options import SettingType
from kstream_agg.cli.tools import connect, open_cluster, open_tools, output
from kstream_agg.kafka.sessions import add_topic
from kstream_agg.kafka.topic_reader import TopicReader

__all__ = ["topics"]

_config = click.option(
    "--config", type=SettingType(), multiple=True, help="A topic setting, name=value; repeatable."
)


@click.group(invoke_without_command=True)
@click.pass_context
def topics(ctx: click.Context) -> None:
    """List, create, delete, describe and alter topics; without a command, list them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_topics)


@topics.command("list")
def list_topics() -> None:
    """List the topics: partitions, offsets in use, cleanup policy.

    Offsets in use are those between a partition's begin and end; compaction and the marks of
    transactions leave some of them without a record.
    """
    settings, _ = open_tools("topics")
    cluster = open_cluster(settings, "topics")
    found = cluster.topics()
    counts: dict[str, int] = defaultdict(int)
    with TopicReader(settings.kafka) as reader:
        for part, span in reader.spans(found).items():
            counts[part.topic] += span.end - span.begin
    table = Table("topic")
    table.add_column("partitions", justify="right")
    table.add_column("records", justify="right")
    table.add_column("cleanup")
    for name in sorted(found):
        policy = cluster.topic_config(name).get("cleanup.policy", "")
        table.add_row(name, str(found[name].partitions), str(counts[name]), policy)
    output().print(table)


@topics.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Brokers that hold each partition; default: three, or all where there are fewer.",
)
@_config
def create(
    name: str, partitions: int, replicas: int | None, config: tuple[tuple[str, str | None], ...]
) -> None:
    """Make the topic NAME; one that is there with the same settings is fine."""
    chosen = {key: value for key, value in config if value is not None}
    made = add_topic(connect("topics"), name, partitions, replicas, chosen)
    click.echo(f"topic {name} is made" if made else f"topic {name} is there already")


@topics.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Don't ask.")
def delete(names: tuple[str, ...], *, yes: bool) -> None:
    """Delete topics with all their records."""
    cluster = connect("topics")
    for name in names:
        cluster.describe_topic(name)
    if not yes:
        click.confirm(f"Delete {', '.join(names)} with all records?", abort=True)
    cluster.delete_topics(names)
    for name in names:
        click.echo(f"topic {name} is deleted")


@topics.command()
@click.argument("name")
def describe(name: str) -> None:
    """Show the topic NAME: partitions with leader and replicas, and settings."""
    cluster = connect("topics")
    found = cluster.describe_topic(name)
    table = Table("partition", "leader", "replicas", "in sync")
    for part in found.details:
        leader = "none" if part.leader is None else str(part.leader)
        replicas, in_sync = (", ".join(map(str, each)) for each in (part.replicas, part.in_sync))
        table.add_row(str(part.number), leader, replicas, in_sync)
    output().print(table)
    for key, value in sorted(cluster.topic_config(name).items()):
        click.echo(f"{key}={value}")


@topics.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(min=1), help="So many from now on: more.")
@_config
def alter(name: str, partitions: int | None, config: tuple[tuple[str, str | None], ...]) -> None:
    """Give the topic NAME more partitions or other settings (`name=` takes the default again)."""
    if partitions is None and not config:
        raise click.UsageError("nothing to change: --partitions N or --config name=value")
    cluster = connect("topics")
    cluster.describe_topic(name)
    cluster.alter_topic(name, partitions=partitions, config=dict(config))
    click.echo(f"topic {name} is changed")
