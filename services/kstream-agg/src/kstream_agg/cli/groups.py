"""`kstream-agg groups`: who reads what, how far they are, and moving them elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from kstream_agg.cli.kafka_options import StartType
from kstream_agg.cli.tools import connect, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.kafka import ConsumerGroups, PartitionLag, Start

__all__ = ["groups"]


@click.group(invoke_without_command=True)
@click.pass_context
def groups(ctx: click.Context) -> None:
    """List, describe and move consumer groups, and show their lag; without a command, list."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_groups)


@groups.command("list")
def list_groups() -> None:
    """List the groups and their state."""
    table = Table("group", "state")
    for name, state in sorted(_groups().names().items()):
        table.add_row(name, state)
    output().print(table)


@groups.command()
@click.argument("group")
def describe(group: str) -> None:
    """Show GROUP's state and members with the partitions each of them reads."""
    found = _groups().describe(group)
    click.echo(f"{found.name} is {found.state}; coordinator: broker {found.coordinator}")
    table = Table("member", "client", "host", "partitions")
    for member in found.members:
        parts = ", ".join(f"{topic}/{number}" for topic, number in member.partitions)
        table.add_row(member.member_id, member.client_id, member.host, parts)
    output().print(table)


@groups.command()
@click.argument("group")
def lag(group: str) -> None:
    """Show how far GROUP is in each partition."""
    _show(_groups().lag(group))


@groups.command()
@click.argument("group")
@click.argument("topic")
@click.option(
    "--to",
    "start",
    type=StartType(),
    required=True,
    help="earliest, latest, an offset, or a time such as 2026-08-01T12:00Z.",
)
def reset(group: str, topic: str, start: Start) -> None:
    """Have GROUP go on elsewhere in TOPIC; it must have no running member."""
    _show(_groups().reset(group, topic, start))


def _groups() -> ConsumerGroups:
    return connect("groups").groups


def _show(lags: Sequence[PartitionLag]) -> None:
    table = Table("partition")
    for title in ("committed", "end", "lag"):
        table.add_column(title, justify="right")
    for each in lags:
        committed, behind = ("-" if n is None else str(n) for n in (each.committed, each.lag))
        table.add_row(f"{each.topic}/{each.partition}", committed, str(each.end), behind)
    output().print(table)
    known = [each.lag for each in lags if each.lag is not None]
    click.echo(f"{sum(known)} behind in all")
