"""Handing records to librdkafka and to the log, and hearing what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException

from kstream_agg.proxy.outcomes import Failure, failure_of
from kstream_agg.proxy.pushing import AwaitedRecord
from kstream_agg.proxy.resending import LoggedRecord
from kstream_agg.proxy.room import AWAY, WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import KafkaError, Message

    from kstream_agg.core.clock import Clock
    from kstream_agg.proxy.journal import Entry, Journal
    from kstream_agg.proxy.outbox import Outbox
    from kstream_agg.proxy.pushing import PushInProgress
    from kstream_agg.proxy.topics import Topics

__all__ = ["Sender"]

_LOG_FULL: Final = Failure(503, "the log is full and Kafka is away: try again later", 5)


class Sender:
    """Sends the records of checked requests.

    Args:
        outbox: The producer.
        topics: The topics' numbers.
        clock: Stamps records of the log.
        queue_wait_s: How long a request waits for room in a full queue, in seconds.
        max_record_bytes: What is larger is refused before it is written to the log.
    """

    def __init__(
        self,
        outbox: Outbox,
        topics: Topics,
        clock: Clock,
        *,
        queue_wait_s: float,
        max_record_bytes: int,
    ) -> None:
        self._outbox = outbox
        self._produce = outbox.produce
        self._topics = topics.tallies
        self._clock = clock
        self._max_record_bytes = max_record_bytes
        self._room = WaitingRoom(outbox, queue_wait_s, self._send_directly, self._fail)
        self.journal: Journal | None = None
        """The log; None accepts into memory only, as the reference did."""

    @property
    def is_free(self) -> bool:
        """Whether Kafka is there and nobody waits for room in the queue."""
        return not self._outbox.away and not self._room.is_occupied

    def send(self, request: PushInProgress, indexes: Sequence[int]) -> None:
        """Send some of a request's records; each is settled, now or later."""
        if self.journal is not None and not request.push.wait:
            self._send_logged(self.journal, request, indexes)
        elif self._outbox.away:
            self._fail(request, indexes, AWAY)
        elif self._room.is_occupied:
            self._room.enter(request, indexes)
        else:
            self._send_directly(request, indexes)

    def send_one(
        self,
        record: Any,  # noqa: ANN401 - one of two record types, see requests
        traceparent: bytes,
        on_delivery: Callable[[KafkaError | None, Message], None],
    ) -> bool:
        """Send a record without the log; False when librdkafka does not take it."""
        try:
            self._produce(
                record.topic,
                record.data,
                record.key,
                on_delivery=on_delivery,
                timestamp=record.timestamp or 0,
                headers=[("traceparent", traceparent)],
            )
        except (BufferError, KafkaException):
            return False
        self._topics[record.topic].sent += 1
        self._outbox.poll_soon()
        return True

    def log_one(
        self,
        journal: Journal,
        record: Any,  # noqa: ANN401 - as above
        traceparent: bytes,
        settle: Callable[[int, Failure | None], None],
    ) -> None:
        """Give a record to the log and to librdkafka."""
        headers: list[tuple[str, Any]] = [("traceparent", traceparent)]
        timestamp = record.timestamp or self._clock.now_ms()
        logged = LoggedRecord(record.topic, record.data, record.key, -1, timestamp, headers)
        self._send_entry(logged, journal.entry(logged, 0, settle))

    def _send_entry(self, logged: LoggedRecord, entry: Entry) -> None:
        try:
            self.send_logged(logged, entry)
        except BufferError:
            return  # the log has it, and sends it when there is room
        except KafkaException as error:
            entry.done = True
            entry.answer(failure_of(error.args[0], logged.topic))
        else:
            entry.flying = True

    def _send_directly(self, request: PushInProgress, indexes: Sequence[int]) -> None:
        """Hand records to librdkafka; with a full queue the rest waits for room."""
        push = request.push
        settled = 0
        for place, index in enumerate(indexes):
            record = push.records[index]
            callback = AwaitedRecord(request, index) if push.wait else self.report
            try:
                self._produce(
                    record.topic,
                    record.data,
                    record.key,
                    -1 if record.partition is None else record.partition,
                    on_delivery=callback,
                    timestamp=record.timestamp or 0,
                    headers=_headers(request, record),
                )
            except BufferError:
                request.left -= settled
                self._room.enter(request, indexes[place:])
                return
            except KafkaException as error:
                request.failures[index] = failure_of(error.args[0], record.topic)
                settled += 1
            else:
                self._topics[record.topic].sent += 1
                settled += not push.wait
        self._outbox.poll_soon()
        if settled:
            request.settle_many(settled)

    def _send_logged(
        self, journal: Journal, request: PushInProgress, indexes: Sequence[int]
    ) -> None:
        """Give records to the log and, while Kafka is there, to librdkafka."""
        away = self._outbox.away
        if away and journal.is_full:
            self._fail(request, indexes, _LOG_FULL)
            return
        now_ms = self._clock.now_ms()
        for index in indexes:
            record = request.push.records[index]
            logged = LoggedRecord(
                record.topic,
                record.data,
                record.key,
                -1 if record.partition is None else record.partition,
                record.timestamp or now_ms,
                _headers(request, record),
            )
            if away and logged.size > self._max_record_bytes:
                request.settle(index, _too_large(record.topic, self._max_record_bytes))
                continue
            entry = journal.entry(logged, index, request.settle)
            if not away:
                self._send_entry(logged, entry)
        self._outbox.poll_soon()

    def send_logged(
        self, record: LoggedRecord, callback: Callable[[KafkaError | None, Message], None]
    ) -> None:
        """Hand a record of the log to librdkafka.

        Raises:
            BufferError: Its queue is full.
            KafkaException: It refuses the record.
        """
        self._produce(
            record.topic,
            record.value,
            record.key,
            record.partition,
            on_delivery=callback,
            timestamp=record.timestamp,
            headers=record.headers,
        )
        topic = self._topics.get(record.topic)
        if topic is not None:
            topic.sent += 1
        self._outbox.poll_soon()

    def _fail(self, request: PushInProgress, indexes: Sequence[int], failure: Failure) -> None:
        for index in indexes:
            request.failures[index] = failure
        request.settle_many(len(indexes))

    def report(self, error: KafkaError | None, message: Message) -> None:
        """Count a delivery report in its topic's numbers."""
        topic = self._topics.get(message.topic() or "")
        if topic is not None:
            topic.reported(message.latency() or 0.0, None if error is None else error.code())
        if error is None and self._outbox.away:
            self._outbox.seen()


def _headers(request: PushInProgress, record: Any) -> list[Any]:  # noqa: ANN401 - as above
    if not record.headers:
        return [("traceparent", request.traceparent)]
    given = record.headers
    pairs = list(given.items() if isinstance(given, dict) else given)
    if not any(name == "traceparent" for name, _value in pairs):
        pairs.append(("traceparent", request.traceparent))
    return pairs


def _too_large(topic: str, limit: int) -> Failure:
    return Failure(413, f"the record for topic '{topic}' is larger than {limit} bytes")
