"""The dead letters of a sink: those that are there, and new ones, each written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.metrics import DEAD_LETTERS
from kstream_agg.kafka.dead_letters import LetterFilter, Place, Selection, read_letters
from kstream_agg.kafka.dlq import Origin, failure_headers
from kstream_agg.kafka.placed_transactions import PlacedTransactionWriter
from kstream_agg.sinks.settings import WATCH

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.topic_reader import Record, TopicReader
    from kstream_agg.sinks.probe import Refusal

__all__ = ["STAGE", "KnownLetters", "LetterBox", "RefusedRow"]

STAGE: Final = "write"
"""`error.stage` of a row that the database refused."""
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A record that the database refuses, and why."""

    record: Record
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class KnownLetters:
    """What stands in a sink's dead-letter topic.

    Attributes:
        places: Where all its letters come from.
        refused: Place and timestamp of the rows the database refused.
        refused_at: When those were set aside, in ms.
    """

    places: frozenset[Place]
    refused: frozenset[tuple[Place, int]]
    refused_at: tuple[int, ...]

    def refused_within_hour(self, now_ms: int) -> int:
        """How many refused rows were set aside within the last hour."""
        return sum(at >= now_ms - _HOUR_MS for at in self.refused_at)


class LetterBox:
    """A sink's dead-letter topic.

    Args:
        topic: The topic.
        owner: The sink's name: one program at a time writes for it.
        settings: How to reach the brokers.
        metrics: Counts the letters.
    """

    def __init__(self, topic: str, owner: str, settings: KafkaSettings, metrics: Metrics) -> None:
        self._topic = topic
        self._settings = settings
        self._metrics = metrics
        self._id = f"{WATCH}-{owner}"

    def known(self, reader: TopicReader) -> KnownLetters:
        """Read the topic to its committed end."""
        letters = list(read_letters(reader, [Selection(self._topic)], LetterFilter()))
        ours = [letter for letter in letters if letter.stage == STAGE]
        return KnownLetters(
            frozenset(letter.origin_place for letter in letters if letter.origin_place),
            frozenset(
                (letter.origin_place, letter.origin.timestamp)
                for letter in ours
                if letter.origin and letter.origin_place
            ),
            tuple(letter.timestamp for letter in ours),
        )

    def write_once(
        self, rows: Sequence[RefusedRow], reader: TopicReader, stop: threading.Event
    ) -> int:
        """Write a letter for each row that has none; gives how many.

        1. Take the transactional id over: what a killed watch had begun is committed or aborted.
        2. Read which letters there are.
        3. Write the others in one transaction.

        Raises:
            UnavailableError: `stop` was set before it was done.
            DeliveryError: Kafka does not take them.
        """
        writer = PlacedTransactionWriter(self._settings, self._metrics, WATCH, self._id)
        # 1.
        if not writer.start(stop):
            raise UnavailableError("ended before the dead letters were written")
        # 2.
        known = self.known(reader).refused
        # 3.
        written = 0
        for row in rows:
            origin = _origin(row.record)
            place = Place(origin.topic, origin.partition, origin.offset)
            if (place, origin.timestamp) in known:
                continue
            said = f"{row.refusal.message} (SQLSTATE {row.refusal.sqlstate})"
            headers = failure_headers(row.refusal.error_class, said, STAGE, origin)
            writer.place(
                self._topic,
                row.record.value,
                key=row.record.key,
                headers=[*row.record.headers, *headers],
            )
            written += 1
        writer.commit(lambda: not stop.is_set())
        self._metrics.counter(DEAD_LETTERS).labels(self._topic, STAGE).inc(written)
        return written


def _origin(record: Record) -> Origin:
    return Origin(record.part.topic, record.part.partition, record.offset, record.timestamp)
