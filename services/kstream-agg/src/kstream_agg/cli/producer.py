"""`kstream-agg producer`: make topics and send records, at a prompt or by one command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kstream_agg.cli.prompting import Verb, open_prompt
from kstream_agg.cli.tools import connect
from kstream_agg.core.errors import KStreamError
from kstream_agg.kafka.record import Record
from kstream_agg.kafka.sessions import ProducerSession

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["producer"]


@click.group(invoke_without_command=True)
@click.pass_context
def producer(ctx: click.Context) -> None:
    """Make topics and send records; without a command, at a prompt (or lines from a script)."""
    if ctx.invoked_subcommand is not None:
        return
    cluster = connect("producer")
    with ProducerSession(cluster) as session:
        open_prompt("producer", cluster, _verbs(session))


@producer.command("add-topic")
@click.argument("topic")
@click.argument("partitions", type=click.IntRange(min=1), default=1)
def add_topic(topic: str, partitions: int) -> None:
    """Make TOPIC with PARTITIONS (1 unless given)."""
    with ProducerSession(connect("producer")) as session:
        _add(session, topic, partitions)


@producer.command("remove-topic")
@click.argument("topic")
def remove_topic(topic: str) -> None:
    """Delete TOPIC with its records."""
    with ProducerSession(connect("producer")) as session:
        session.remove_topic(topic)
    click.echo(f"topic {topic} is removed")


@producer.command()
@click.argument("topic")
@click.argument("value", required=False)
@click.option("--key", help="Decides the partition.")
def send(topic: str, value: str | None, key: str | None) -> None:
    """Send VALUE to TOPIC; without one, each line of standard input."""
    if value is not None:
        with ProducerSession(connect("producer")) as session:
            _send(session, topic, value, key)
        return
    with connect("producer").writer(topic) as writer:
        for line in sys.stdin:
            writer.produce(Record(line.rstrip("\n").encode(), key=key))
        writer.flush()
        click.echo(f"{writer.delivered} records are acknowledged")


def _verbs(session: ProducerSession) -> dict[str, Verb]:
    def add(words: Sequence[str]) -> None:
        count = words[1] if len(words) > 1 else "1"
        if not count.isdigit() or int(count) < 1:
            raise KStreamError(f"'{count}' is no number of partitions")
        _add(session, words[0], int(count))

    def remove(words: Sequence[str]) -> None:
        session.remove_topic(words[0])
        click.echo(f"topic {words[0]} is removed")

    def send_one(words: Sequence[str]) -> None:
        _send(session, words[0], words[1], words[2] if len(words) > 2 else None)

    return {
        "add-topic": Verb("TOPIC [PARTITIONS]", "make a topic", 1, 2, add),
        "remove-topic": Verb("TOPIC", "delete a topic with its records", 1, 1, remove),
        "send": Verb("TOPIC VALUE [KEY]", "send a record ('two words' in quotes)", 2, 3, send_one),
    }


def _add(session: ProducerSession, topic: str, partitions: int) -> None:
    made = session.add_topic(topic, partitions)
    click.echo(f"topic {topic} is made" if made else f"topic {topic} is there already")


def _send(session: ProducerSession, topic: str, value: str, key: str | None) -> None:
    place = session.send(topic, value, key)
    click.echo(f"{place.topic}/{place.partition}/{place.offset}")
