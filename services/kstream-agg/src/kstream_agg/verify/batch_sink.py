"""What the batch-sink has written, compared with its topics: offsets missing, offsets twice.

Two questions to ClickHouse a topic (`count`, `uniqExact`, with FINAL and without). Where offsets
are not all there, Kafka is asked: the ends of transactions and what was aborted take offsets too,
and records that the sink has set aside stand in the dead-letter topic. What is left is missing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from kstream_agg.core.names import dead_letter_topic
from kstream_agg.kafka.dlq import header_value, origin_from_headers
from kstream_agg.kafka.topic_reader import Span, TopicPart
from kstream_agg.sinks.clickhouse import identifier, literal
from kstream_agg.sinks.clickhouse_tables import BARE_PLACE, KAFKA_PLACE, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from kstream_agg.kafka.topic_reader import Position, Record

__all__ = ["OffsetsCheck", "PartitionReport", "check_topic"]

# Offsets that are asked for at once where some are missing.
_BUCKET: Final = 100_000
# Holes nearer to each other than this are read in one go: a read costs as much as 100,000 records.
_NEAR: Final = 100_000
_EXAMPLES: Final = 5


class Tables(Protocol):
    """Asks the server."""

    database: str

    def rows(self, query: str) -> list[list[Any]]:
        """The rows of a query."""


class Topics(Protocol):
    """Asks Kafka, for committed records only."""

    def spans(self, topics: Iterable[str]) -> dict[TopicPart, Span]:
        """What stands in each partition."""

    def positions(self, group: str) -> dict[TopicPart, Position]:
        """What a group has committed."""

    def read(self, spans: Mapping[TopicPart, Span]) -> Iterator[Record]:
        """The records of spans."""


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """What was found of a partition.

    Args:
        topic: The topic.
        partition: Its number.
        begin: First offset that the topic still holds.
        committed: The sink's position: everything before it has to be there.
        rows: Rows of the table, as they are read with FINAL.
        missing: Records before the position that are neither in the table nor dead letters.
        twice: Offsets that are there twice when read with FINAL.
        unmerged: Offsets that are written twice and not merged yet; FINAL hides them.
        no_records: Offsets that are no records: ends of transactions, aborted or compacted ones.
        dead_letters: Records that the sink has set aside.
        examples: Some of the offsets that are missing.
    """

    topic: str
    partition: int
    begin: int
    committed: int
    rows: int
    missing: int
    twice: int
    unmerged: int
    no_records: int
    dead_letters: int
    examples: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OffsetsCheck:
    """The answer for all topics."""

    partitions: tuple[PartitionReport, ...]

    @property
    def exit_code(self) -> int:
        """0: nothing missing and nothing twice; 1: something is; 2: nothing was committed yet."""
        if not self.partitions:
            return 2
        return int(any(item.missing or item.twice for item in self.partitions))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"exit_code": self.exit_code, "partitions": [asdict(p) for p in self.partitions]}


@dataclass(frozen=True, slots=True)
class _Counts:
    rows: int
    offsets: int


def check_topic(
    tables: Tables, topics: Topics, topic: str, table: str, group: str
) -> list[PartitionReport]:
    """Compare a topic with its table, up to what the group has committed.

    Returns:
        A report for each partition that the group has committed something of.

    Raises:
        ContractError: The table is not there, or not one of the sink's.
        UnavailableError: Kafka or ClickHouse does not answer.
    """
    positions = topics.positions(group)
    spans = {part: span for part, span in topics.spans([topic]).items() if part in positions}
    if not spans:
        # Before the first commit there need be no table either.
        return []
    rows = _Rows(tables, topic, table)
    final = rows.counts(final=True) if rows.can_merge else rows.counts(final=False)
    plain = rows.counts(final=False)
    dead: set[tuple[int, int]] | None = None
    reports = []
    for part, span in sorted(spans.items()):
        position = positions[part]
        due = Span(min(span.begin, position.offset), position.offset)
        known = Span(span.begin, max(span.begin, min(position.offset, span.end)))
        holes = rows.holes(part.partition, known)
        found = _records(topics, part, holes)
        if len(found) and dead is None:
            dead = _dead_letters(topics, topic)
        lost = [int(item) for item in found if (part.partition, int(item)) not in (dead or ())]
        none = _Counts(0, 0)
        merged, written = final.get(part.partition, none), plain.get(part.partition, none)
        reports.append(
            PartitionReport(
                topic,
                part.partition,
                due.begin,
                position.offset,
                rows=merged.rows,
                missing=len(lost),
                twice=merged.rows - merged.offsets,
                unmerged=written.rows - written.offsets,
                no_records=len(holes) - len(found),
                dead_letters=len(found) - len(lost),
                examples=tuple(lost[:_EXAMPLES]),
            )
        )
    return reports


class _Rows:
    """The rows of one topic in its table."""

    def __init__(self, tables: Tables, topic: str, table: str) -> None:
        self._tables = tables
        columns = {str(name) for (name,) in tables.rows(_columns_of(tables.database, table))}
        self._place: Place = KAFKA_PLACE if KAFKA_PLACE.offset in columns else BARE_PLACE
        self._table = f"{identifier(tables.database)}.{identifier(table)}"
        self._where = "1"
        if self._place.topic in columns:
            self._where = f"{identifier(self._place.topic)} = {literal(topic)}"
        engine = tables.rows(
            "SELECT engine FROM system.tables"  # noqa: S608 - literals
            f" WHERE database = {literal(tables.database)} AND name = {literal(table)}"
        )
        self.can_merge = bool(engine) and "Replacing" in str(engine[0][0])

    def counts(self, *, final: bool) -> dict[int, _Counts]:
        """Rows and offsets of each partition."""
        partition, offset = map(identifier, (self._place.partition, self._place.offset))
        found = self._tables.rows(
            f"SELECT {partition}, count(), uniqExact({offset}) FROM {self._table}"  # noqa: S608 - identifiers
            f"{' FINAL' if final else ''} WHERE {self._where} GROUP BY {partition}"
        )
        return {int(number): _Counts(int(rows), int(items)) for number, rows, items in found}

    def holes(self, partition: int, span: Span) -> NDArray[np.int64]:
        """The offsets of a span that are not there."""
        if span.begin >= span.end:
            return np.empty(0, dtype=np.int64)
        number, offset = map(identifier, (self._place.partition, self._place.offset))
        within = (
            f"{self._where} AND {number} = {partition}"
            f" AND {offset} >= {span.begin} AND {offset} < {span.end}"
        )
        full = self._tables.rows(
            f"SELECT intDiv({offset}, {_BUCKET}) AS bucket, uniqExact({offset})"  # noqa: S608 - identifiers and numbers
            f" FROM {self._table} WHERE {within} GROUP BY bucket"
        )
        have = {int(bucket): int(count) for bucket, count in full}
        found = []
        for bucket in range(span.begin // _BUCKET, (span.end - 1) // _BUCKET + 1):
            begin = max(span.begin, bucket * _BUCKET)
            end = min(span.end, (bucket + 1) * _BUCKET)
            if have.get(bucket, 0) < end - begin:
                there = self._tables.rows(
                    f"SELECT DISTINCT {offset} FROM {self._table}"  # noqa: S608 - identifiers and numbers
                    f" WHERE {within} AND intDiv({offset}, {_BUCKET}) = {bucket}"
                )
                offsets = np.array([int(item) for (item,) in there], dtype=np.int64)
                found.append(np.setdiff1d(np.arange(begin, end), offsets))
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _columns_of(database: str, table: str) -> str:
    return (
        "SELECT name FROM system.columns"  # noqa: S608 - literals
        f" WHERE database = {literal(database)} AND table = {literal(table)}"
    )


def _records(topics: Topics, part: TopicPart, holes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of these offsets are records."""
    found = []
    if len(holes):
        for near in np.split(holes, np.flatnonzero(np.diff(holes) > _NEAR) + 1):
            span = Span(int(near[0]), int(near[-1]) + 1)
            offsets = (record.offset for record in topics.read({part: span}))
            there = np.fromiter(offsets, dtype=np.int64)
            found.append(np.intersect1d(near, there))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _dead_letters(topics: Topics, topic: str) -> set[tuple[int, int]]:
    """Partition and offset of the records that the sink has set aside."""
    from kstream_agg.sinks.batch_sink import STAGES  # noqa: PLC0415 - the service's parts

    found = set()
    for record in topics.read(topics.spans([dead_letter_topic(topic)])):
        origin = origin_from_headers(record.headers)
        stage = header_value(record.headers, "error.stage")
        if origin is not None and origin.topic == topic and stage in STAGES:
            found.add((origin.partition, origin.offset))
    return found
