"""`kstream-agg gaps`: what is missing in a raw topic, found by reading it."""

from __future__ import annotations

import difflib
import json
import operator
import sys
from collections import defaultdict
from datetime import datetime  # noqa: TC003 - a NamedTuple's field
from typing import TYPE_CHECKING, NamedTuple

import click
import polars as pl
from rich.table import Table

from kstream_agg.cli.tools import open_cluster, open_tools, output
from kstream_agg.core.errors import ContractError
from kstream_agg.core.names import channel_topic, gaps_topic
from kstream_agg.core.schemas import TRADE_GAP
from kstream_agg.kafka.columns import ColumnDecoder
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.verify.reading import TopicReader
from kstream_agg.verify.seqs import SeqSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.core.settings import KafkaSettings, RegistrySettings

__all__ = ["RecordedGap", "find_gaps", "find_recorded_gaps", "gaps"]

_BATCH = 5_000


class RecordedGap(NamedTuple):
    """Trades that were given up, and how many of them the topic holds now."""

    instrument_name: str
    first_seq: int
    last_seq: int
    given_up_at: datetime
    filled: int

    @property
    def missing(self) -> int:
        """How many it still lacks."""
        return self.last_seq - self.first_seq + 1 - self.filled


@click.command()
@click.argument("topic", required=False)
@click.option("--channel", help="Instead of TOPIC: the channel it is the topic of.")
@click.option(
    "--recorded",
    is_flag=True,
    help="Instead: what was given up (TOPIC-gaps), and how much of it came after all.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def gaps(topic: str | None, channel: str | None, *, recorded: bool, as_json: bool) -> None:
    """List the trades that TOPIC lacks between an instrument's first and last one there.

    The topic itself is read, not what its producer says of it. By default the first channel's.
    Exits 1 when trades are missing. To look for them: kstream-agg backfill.
    """
    settings, _ = open_tools("gaps")
    if topic is None:
        topic = channel_topic(channel) if channel else settings.raw_topics[0]
    known = open_cluster(settings, "gaps").topics()
    if topic not in known:
        near = difflib.get_close_matches(topic, known, n=3, cutoff=0.5) or sorted(known)[:5]
        raise ContractError(
            f"there is no topic '{topic}'",
            remedy="did you mean " + ", ".join(near) + "?" if near else "there are no topics yet",
        )
    if recorded:
        _report_recorded(topic, settings.kafka, settings.registry, as_json=as_json)
        return
    found = list(find_gaps(topic, settings.kafka, settings.registry))
    if as_json:
        for name, first, last in found:
            line = {"instrument_name": name, "first_seq": first, "last_seq": last}
            sys.stdout.write(json.dumps(line) + "\n")
    else:
        _print(topic, found)
    if found:
        sys.exit(1)


def find_gaps(
    topic: str, kafka: KafkaSettings, registry: RegistrySettings
) -> Iterator[tuple[str, int, int]]:
    """Instrument, first and last number of each run of missing trades, by instrument.

    Args:
        topic: A raw topic; it is read up to its end of now.
        kafka: Where it is.
        registry: Where its schemas are.

    Raises:
        UnavailableError: Kafka or the registry does not answer.
    """
    with SchemaRegistry(registry) as schemas, TopicReader(kafka) as reader:
        seen = _read_numbers(topic, schemas, reader)
    for name in sorted(seen):
        for first, last in seen[name].holes():
            yield name, first, last


def _read_numbers(
    topic: str, schemas: SchemaRegistry, reader: TopicReader
) -> defaultdict[str, SeqSet]:
    """The numbers of each instrument's trades in a topic."""
    seen: defaultdict[str, SeqSet] = defaultdict(SeqSet)
    columns: dict[str, type[pl.DataType]] = {
        "instrument_name": pl.String,
        "trade_seq": pl.Int64,
    }
    decoder = ColumnDecoder(schemas.schema_by_id, columns, "instrument_name")
    keys: list[bytes | None] = []
    values: list[bytes | None] = []

    def take() -> None:
        for name, seq in decoder.decode(values, keys).frame.iter_rows():
            seen[name].add(seq)
        keys.clear()
        values.clear()

    for record in reader.read(reader.spans([topic])):
        keys.append(record.key)
        values.append(record.value)
        if len(keys) >= _BATCH:
            take()
    if keys:
        take()
    return seen


def find_recorded_gaps(
    topic: str, kafka: KafkaSettings, registry: RegistrySettings
) -> list[RecordedGap]:
    """What the gaps topic of a raw topic names, in the order it was given up.

    Args:
        topic: A raw topic.
        kafka: Where it is.
        registry: Where its schemas are.

    Raises:
        UnavailableError: Kafka or the registry does not answer.
        InvalidRecordError: A record of the gaps topic cannot be decoded.
    """
    with SchemaRegistry(registry) as schemas, TopicReader(kafka) as reader:
        decoder = RecordDecoder(schemas.schema_by_id, TRADE_GAP)
        named = gaps_topic(topic)
        records = [decoder.decode(found.value) for found in reader.read(reader.spans([named]))]
        seen = _read_numbers(topic, schemas, reader) if records else {}
    found = []
    for record in sorted(records, key=operator.itemgetter("given_up_at")):
        name, first, last = (record[key] for key in ("instrument_name", "first_seq", "last_seq"))
        filled = seen[name].count(first, last) if name in seen else 0
        found.append(RecordedGap(name, first, last, record["given_up_at"], filled))
    return found


def _report_recorded(
    topic: str, kafka: KafkaSettings, registry: RegistrySettings, *, as_json: bool
) -> None:
    found = find_recorded_gaps(topic, kafka, registry)
    missing = sum(gap.missing for gap in found)
    if as_json:
        for gap in found:
            line = gap._asdict() | {
                "given_up_at": gap.given_up_at.isoformat(),
                "missing": gap.missing,
            }
            sys.stdout.write(json.dumps(line) + "\n")
    elif not found:
        output().print(f"{topic}: no trade was given up")
    else:
        table = Table("instrument", "given up at")
        for title in ("first", "last", "filled since", "still missing"):
            table.add_column(title, justify="right")
        for gap in found:
            numbers = (gap.first_seq, gap.last_seq, gap.filled, gap.missing)
            at = f"{gap.given_up_at:%Y-%m-%d %H:%M:%S}"
            table.add_row(gap.instrument_name, at, *map(str, numbers))
        output().print(table)
        filled = sum(gap.filled for gap in found)
        output().print(f"{topic}: of the trades given up {filled} came after all, {missing} lack")
    if missing:
        sys.exit(1)


def _print(topic: str, found: list[tuple[str, int, int]]) -> None:
    if not found:
        output().print(f"{topic}: no trade is missing")
        return
    table = Table("instrument")
    for title in ("first", "last", "trades"):
        table.add_column(title, justify="right")
    for name, first, last in found:
        table.add_row(name, str(first), str(last), str(last - first + 1))
    output().print(table)
    missing = sum(last - first + 1 for _, first, last in found)
    output().print(f"{topic}: {missing} trades are missing")
