"""Bounded reads: what stands in a topic between two offsets, and how far a group has come."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from kstream_agg.core.errors import UnavailableError
from kstream_agg.kafka.failures import kafka_failure, mapped
from kstream_agg.kafka.group_offsets import group_offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping
    from types import TracebackType

    from confluent_kafka import Message

    from kstream_agg.core.settings import KafkaSettings

__all__ = ["Position", "Record", "Span", "TopicPart", "TopicReader"]

_TIMEOUT_S: Final = 15.0
_PARTITION_END: Final = KafkaError._PARTITION_EOF  # noqa: SLF001 - how librdkafka names its own codes
# A topic that was made just now, or a partition that moves: librdkafka does not ask again.
_NO_LEADER_YET: Final = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
)
_LEADER_ATTEMPTS: Final = 20
_LEADER_PAUSE_S: Final = 0.25
_BATCH: Final = 10_000
_POLL_S: Final = 0.1
# A broker that gives nothing for this long while records are known to stand there is gone.
_SILENCE_S: Final = 30.0


class TopicPart(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets from `begin` up to, not including, `end`."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Position:
    """What a group has committed for a partition: the offset and the text beside it."""

    offset: int
    metadata: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in a topic."""

    part: TopicPart
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int = -1
    """In ms; -1: unknown."""


class TopicReader:
    """Reads committed records only; a context manager.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
    """

    def __init__(self, settings: KafkaSettings, client_id: str = "verify") -> None:
        common = settings.client_config() | {"client.id": client_id, "log_level": 0}
        self._admin = AdminClient(common)
        self._consumer = Consumer(
            common
            | {
                # Never joined and never committed to: partitions are assigned by hand.
                "group.id": "kstream-agg-verify",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 10,  # at its default it slows catching up by six times
                # A partition's end is told when a fetch comes back empty: by default after 500 ms,
                # which was most of the time that reading a short topic took.
                "fetch.wait.max.ms": 20,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._consumer.close()
        # One that the garbage collector meets in its own thread would end the process
        # (confluent-kafka-python, pull requests 2129 and 2131).
        self._admin.__exit__(kind, error, traceback)

    def spans(self, topics: Iterable[str]) -> dict[TopicPart, Span]:
        """What stands in each partition now, up to the last stable offset.

        Topics that do not exist are left out.

        Raises:
            UnavailableError: No broker answers.
        """
        try:
            known = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            raise kafka_failure(error, "reading the topics") from error
        parts = [
            TopicPart(topic, number)
            for topic in topics
            if topic in known
            for number in known[topic].partitions
        ]
        # The ends first: what retention deletes between the calls then only shortens the span.
        ends = self._offsets(parts, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # theirs
        begins = self._offsets(parts, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # theirs
        return {part: Span(min(begins[part], ends[part]), ends[part]) for part in parts}

    def _offsets(self, parts: list[TopicPart], spec: OffsetSpec) -> dict[TopicPart, int]:
        if not parts:
            return {}
        attempts = 0
        while True:
            try:
                return self._list_offsets(parts, spec)
            except KafkaException as error:
                attempts += 1
                if error.args[0].code() not in _NO_LEADER_YET or attempts == _LEADER_ATTEMPTS:
                    raise kafka_failure(error, "reading the ends of partitions") from error
            time.sleep(_LEADER_PAUSE_S)

    def _list_offsets(self, parts: list[TopicPart], spec: OffsetSpec) -> dict[TopicPart, int]:
        futures = self._admin.list_offsets(
            {TopicPartition(part.topic, part.partition): spec for part in parts},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_TIMEOUT_S,
        )
        return {
            TopicPart(tp.topic, tp.partition): int(future.result().offset)
            for tp, future in futures.items()
        }

    def positions(self, group: str) -> dict[TopicPart, Position]:
        """What a group has committed; empty for a group that has committed nothing.

        Raises:
            UnavailableError: No broker answers.
        """
        with mapped(f"reading the offsets of group '{group}'"):
            found = group_offsets(self._admin, group, _TIMEOUT_S)
        return {
            TopicPart(tp.topic, tp.partition): Position(tp.offset, tp.metadata)
            for tp in found
            if tp.offset >= 0
        }

    def read(self, spans: Mapping[TopicPart, Span]) -> Generator[Record]:
        """The records of the spans; those of one partition in offset order.

        Raises:
            UnavailableError: The broker stops giving records before the ends are reached.
        """
        with contextlib.closing(self.batches(spans)) as batches:
            for part, messages in batches:
                for message in messages:
                    yield _record(part, int(message.offset() or 0), message)

    def batches(
        self, spans: Mapping[TopicPart, Span]
    ) -> Generator[tuple[TopicPart, list[Message]]]:
        """The same as librdkafka's messages, as many of a partition at once as a poll gave.

        All partitions are read at once: one that is assigned later waits for a fetch that is under
        way, which costs about a second each.

        Raises:
            UnavailableError: The broker stops giving records before the ends are reached.
        """
        open_spans = {part: span for part, span in spans.items() if span.begin < span.end}
        if not open_spans:
            return
        self._consumer.assign(
            [TopicPartition(p.topic, p.partition, span.begin) for p, span in open_spans.items()]
        )
        try:
            empty_polls = 0
            while open_spans:
                # consume() waits out its timeout unless the batch is full: so a short one.
                messages = self._consumer.consume(_BATCH, timeout=_POLL_S)
                empty_polls = 0 if messages else empty_polls + 1
                if empty_polls * _POLL_S >= _SILENCE_S:
                    raise UnavailableError(f"Kafka gave no record for {_SILENCE_S:.0f} s")
                yield from _within(messages, open_spans).items()
        except KafkaException as error:
            raise kafka_failure(error, "reading records") from error
        finally:
            self._consumer.unassign()

    def first(
        self, part: TopicPart, span: Span, counts: Callable[[Record], bool] = lambda _: True
    ) -> Record | None:
        """The first record of the span that counts; None when there is none."""
        with contextlib.closing(self.read({part: span})) as records:
            return next(filter(counts, records), None)

    def has_records(
        self, part: TopicPart, span: Span, counts: Callable[[Record], bool] = lambda _: True
    ) -> bool:
        """Whether a record that counts stands in the span.

        There can be none even in a long span: the ends of transactions take offsets too.
        """
        return self.first(part, span, counts) is not None


def _record(part: TopicPart, offset: int, message: Message) -> Record:
    headers: Any = message.headers()
    key: Any = message.key()
    value: Any = message.value()
    return Record(part, offset, key, value, list(headers or ()), message.timestamp()[1])


def _within(
    messages: Iterable[Message], open_spans: dict[TopicPart, Span]
) -> dict[TopicPart, list[Message]]:
    """The records within the spans, by partition; a span that is read to its end is taken off."""
    found: dict[TopicPart, list[Message]] = {}
    for message in messages:
        part = TopicPart(str(message.topic()), int(message.partition() or 0))
        span = open_spans.get(part)
        error = message.error()
        if error is not None and error.code() != _PARTITION_END:
            raise KafkaException(error)
        if span is None:
            continue
        offset = int(message.offset() or 0)
        if error is None and offset < span.end:
            found.setdefault(part, []).append(message)
        # An end-of-partition event carries the offset after the last record; control
        # records of transactions take offsets too, so the last record can stand before.
        if offset + (error is None) >= span.end:
            del open_spans[part]
    return found
