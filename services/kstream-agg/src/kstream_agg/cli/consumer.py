"""`kstream-agg consumer`: read topics, alone or in a group, at a prompt or by one command."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from kstream_agg.cli.kafka_options import StartType, record_line
from kstream_agg.cli.prompting import Verb, run_prompt
from kstream_agg.cli.tools import open_cluster, open_tools
from kstream_agg.kafka.sessions import ConsumerSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.kafka import KafkaCluster, Start

__all__ = ["consumer"]

_topics = click.argument("topics", nargs=-1, required=True)
_group = click.option("--group", help="Share the partitions with this group's other members.")
_start = click.option(
    "--from",
    "start",
    type=StartType(),
    default="latest",
    show_default=True,
    help="Where to begin without a committed offset: earliest, latest, an offset, or a time.",
)


@click.group(invoke_without_command=True)
@click.pass_context
def consumer(ctx: click.Context) -> None:
    """Read topics; without a command, at a prompt (or lines from a script)."""
    if ctx.invoked_subcommand is not None:
        return
    cluster = _cluster()
    with ConsumerSession(cluster) as session:
        run_prompt(
            "consumer",
            f"A consumer on {cluster.settings.bootstrap_servers}:",
            _verbs(session),
            lambda: sorted(cluster.topics()),
        )


@consumer.command()
@_topics
@_group
@_start
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
def subscribe(topics: tuple[str, ...], group: str | None, start: Start, count: int | None) -> None:
    """Print the records of TOPICS as they come, until Ctrl-C; in a group, as its member."""
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
@_group
@_start
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the first.")
def poll(
    topics: tuple[str, ...], group: str | None, start: Start, count: int, timeout: float
) -> None:
    """Print the next records of TOPICS, and end; exits 1 when none comes in time."""
    with _session(topics, group, start) as session:
        left = _print(session, count, timeout)
    if left == count:
        raise click.exceptions.Exit(1)


@consumer.command("leave-group")
@click.argument("group")
def leave_group(group: str) -> None:
    """Forget what GROUP has committed; it must have no running member."""
    _cluster().groups.delete(group)
    click.echo(f"group {group} is gone")


def _cluster() -> KafkaCluster:
    settings, _ = open_tools("consumer")
    return open_cluster(settings, "consumer")


def _session(topics: Sequence[str], group: str | None, start: Start) -> ConsumerSession:
    session = ConsumerSession(_cluster(), start)
    if group is not None:
        session.join_group(group)
    for topic in topics:
        session.subscribe(topic)
    return session


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
