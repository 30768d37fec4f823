"""`kstream-agg gaps`: what is missing in a raw topic, found by reading it."""

from __future__ import annotations

import difflib
import json
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import click
import polars as pl
from rich.table import Table

from kstream_agg.cli.tools import open_cluster, open_tools, output
from kstream_agg.core.errors import ContractError
from kstream_agg.core.names import channel_topic
from kstream_agg.kafka.columns import ColumnDecoder
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.verify.reading import TopicReader
from kstream_agg.verify.seqs import SeqSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.core.settings import KafkaSettings, RegistrySettings

__all__ = ["find_gaps", "gaps"]

_BATCH = 5_000


@click.command()
@click.argument("topic", required=False)
@click.option("--channel", help="Instead of TOPIC: the channel it is the topic of.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def gaps(topic: str | None, channel: str | None, *, as_json: bool) -> None:
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
    seen: defaultdict[str, SeqSet] = defaultdict(SeqSet)
    columns: dict[str, type[pl.DataType]] = {
        "instrument_name": pl.String,
        "trade_seq": pl.Int64,
    }
    with SchemaRegistry(registry) as schemas, TopicReader(kafka) as reader:
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
    for name in sorted(seen):
        for first, last in seen[name].holes():
            yield name, first, last


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
