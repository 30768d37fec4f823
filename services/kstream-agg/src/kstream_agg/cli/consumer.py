"""`kstream-agg consumer`: read topics, alone or in a group, at a prompt or by one command."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import click

from kstream_agg.cli.kafka_options import StartType, record_line
from kstream_agg.cli.prompting import Verb, open_prompt
from kstream_agg.cli.tools import connect
from kstream_agg.core.errors import ContractError
from kstream_agg.kafka.sessions import ConsumerSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.kafka import ConsumerGroups, Start

__all__ = ["consumer"]

_DEFAULT_START: Final = "latest"
_topics = click.argument("topics", nargs=-1, required=True)
_some_topics = click.argument("topics", nargs=-1)
_group = click.option("--group", help="Share the partitions with this group's other members.")
_start = click.option(
    "--from",
    "start",
    type=StartType(),
    show_default=_DEFAULT_START,
    help="Where to begin without a committed offset: earliest, latest, an offset, or a time.",
)


@click.group(invoke_without_command=True)
@click.pass_context
def consumer(ctx: click.Context) -> None:
    """Read topics; without a command, at a prompt (or lines from a script)."""
    if ctx.invoked_subcommand is not None:
        return
    cluster = connect("consumer")
    with ConsumerSession(cluster) as session:
        open_prompt("consumer", cluster, _verbs(session))


@consumer.command()
@_some_topics
@_group
@_start
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
def subscribe(
    topics: tuple[str, ...], group: str | None, start: Start | None, count: int | None
) -> None:
    """Print the records of TOPICS as they come, until Ctrl-C; in a group, as its member.

    Without TOPICS, those that the group is subscribed to.
    """
    # In the background of a script it would be ignored, and nothing else ends this command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    left = count
    try:
        with _session(topics, group, start) as session:
            while left is None or left > 0:
                left = _print(session, left, 1.0)
    except KeyboardInterrupt:
        return


@consumer.command()
@_topics
@click.option("--group", required=True, help="The group.")
def unsubscribe(topics: tuple[str, ...], group: str) -> None:
    """Have a group read TOPICS no more: subscribed again, it begins anew there.

    It must have no running member.
    """
    groups = connect("consumer").groups
    groups.unsubscribe(group, topics)
    _say_subscribed(groups, group)


@consumer.command("join-group")
@click.argument("group")
@_topics
@_start
def join_group(group: str, topics: tuple[str, ...], start: Start | None) -> None:
    """Have GROUP read TOPICS from now on, whoever polls for it, and whenever.

    Nothing that comes after this is missed. Where GROUP has read already, it goes on; it must have
    no running member.
    """
    groups = connect("consumer").groups
    groups.subscribe(group, topics, _DEFAULT_START if start is None else start)
    _say_subscribed(groups, group)


@consumer.command("leave-group")
@click.argument("group")
def leave_group(group: str) -> None:
    """Forget GROUP: its topics and what it has committed; it must have no running member."""
    connect("consumer").groups.delete(group)
    click.echo(f"group {group} is gone")


@consumer.command()
@_some_topics
@_group
@_start
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the first.")
def poll(
    topics: tuple[str, ...], group: str | None, start: Start | None, count: int, timeout: float
) -> None:
    """Print the next records of TOPICS, and end; exits 1 when none comes in time.

    Without TOPICS, those that the group is subscribed to.
    """
    with _session(topics, group, start) as session:
        left = _print(session, count, timeout)
    if left == count:
        raise click.exceptions.Exit(1)


def _session(topics: Sequence[str], group: str | None, start: Start | None) -> ConsumerSession:
    if not topics and group is None:
        raise click.UsageError("name topics, or a group that is subscribed to some")
    cluster = connect("consumer")
    begin: Start = _DEFAULT_START if start is None else start
    if not topics and group is not None:
        topics = cluster.groups.topics(group)
        if not topics:
            raise ContractError(
                f"group '{group}' is subscribed to nothing",
                remedy=f"name topics, or: kstream-agg consumer join-group {group} TOPIC",
            )
        # What it has no place in are partitions that were added since.
        begin = "earliest" if start is None else start
    session = ConsumerSession(cluster, begin)
    if group is not None:
        session.join_group(group)
    for topic in topics:
        session.subscribe(topic)
    return session


def _say_subscribed(groups: ConsumerGroups, group: str) -> None:
    click.echo(f"group {group} is subscribed to {', '.join(groups.topics(group)) or 'nothing'}")


def _print(session: ConsumerSession, left: int | None, timeout_s: float) -> int | None:
    found = session.poll(100 if left is None else left, timeout_s)
    for record in found:
        click.echo(record_line(record))
    return None if left is None else left - len(found)


def _verbs(session: ConsumerSession) -> dict[str, Verb]:
    def subscribe_one(words: Sequence[str]) -> None:
        session.subscribe(words[0])
        click.echo(f"subscribed to {', '.join(session.topics)}, from what comes now")

    def unsubscribe(words: Sequence[str]) -> None:
        session.unsubscribe(words[0])
        click.echo(f"subscribed to {', '.join(session.topics) or 'nothing'}")

    def join(words: Sequence[str]) -> None:
        session.join_group(words[0])
        click.echo(f"a member of {words[0]} with the next poll")

    def leave(_words: Sequence[str]) -> None:
        session.leave_group()
        click.echo("in no group")

    def poll_some(words: Sequence[str]) -> None:
        seconds = float(words[0]) if words and words[0].replace(".", "", 1).isdigit() else 5.0
        found = session.poll(timeout_s=seconds)
        for record in found:
            click.echo(record_line(record))
        parts = ", ".join(session.assigned()) or "nothing yet"
        click.echo(f"{len(found)} records; assigned: {parts}")

    return {
        "subscribe": Verb("TOPIC", "read a topic, from what comes now", 1, 1, subscribe_one),
        "unsubscribe": Verb("TOPIC", "read it no more", 1, 1, unsubscribe),
        "join-group": Verb("GROUP", "share the partitions with its other members", 1, 1, join),
        "leave-group": Verb("", "read alone again", 0, 0, leave),
        "poll": Verb("[SECONDS]", "the records that come within 5 s, or so many", 0, 1, poll_some),
    }
