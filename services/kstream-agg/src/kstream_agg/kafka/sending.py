"""The writer of the public API: records to one topic, each with an outcome that can be awaited."""

from __future__ import annotations

import itertools
import json
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from confluent_kafka import KafkaException
from prometheus_client import CollectorRegistry

from kstream_agg.core.metrics import Metrics
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.delivery import Delivered, Delivery
from kstream_agg.kafka.scoped import Scoped
from kstream_agg.kafka.writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError

    from kstream_agg.core.errors import DeliveryError
    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.codecs import Codec
    from kstream_agg.kafka.record import Record

__all__ = ["Delivered", "Delivery", "Writer"]

T = TypeVar("T")

_POLL_S: Final = 0.05
# So many records after each other, and the reports of earlier ones are taken: they hold memory.
_SERVE_EVERY: Final = 512
_TIMEOUT_S: Final = 60.0
_STATISTICS_MS: Final = 5_000


class Writer(Scoped, Generic[T]):
    """Writes records to a topic; a context manager, blocking or `async`, that flushes at its end.

    The producer is idempotent: retries make no copies, and records of one partition keep their
    order. While its queue is full `produce` waits: a slow Kafka slows its source down. One record
    that was not delivered makes every later call raise.

    Made by `KafkaCluster.writer` and `writer_for_partition`; may be used from several threads.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
        topic: Where to.
        partition: Which partition; -1 leaves it to the key.
        codec: Encodes values; None: they are bytes.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        client_id: str,
        topic: str,
        partition: int = -1,
        *,
        codec: Codec[T] | None = None,
    ) -> None:
        own: dict[str, Any] = {"log_level": 0, "statistics.interval.ms": _STATISTICS_MS}
        properties = own | settings.properties | {"stats_cb": self._on_statistics}
        self.topic = topic
        self.partition = partition
        self._encode = None if codec is None else codec.encode
        self._statistics = ""
        self._records = RecordWriter(
            settings.model_copy(update={"properties": properties}),
            Metrics(CollectorRegistry()),
            client_id,
        )
        self._produce: Callable[..., None] = self._records.bare_produce
        self._delivered = 0
        # In C, as all that is done for each record should be.
        turns = itertools.cycle([turn == _SERVE_EVERY for turn in range(1, _SERVE_EVERY + 1)])
        self._is_time_to_serve = turns.__next__
        self._lock = threading.Lock()
        self._server: threading.Thread | None = None

    def produce(self, record: Record[T]) -> Delivery:
        """Queue a record.

        Args:
            record: What to write.

        Returns:
            Its outcome, to be awaited or ignored.

        Raises:
            InvalidRecordError: The codec cannot encode its value.
            DeliveryError: An earlier record was not delivered, or this one never can be.
        """
        if self._is_time_to_serve():
            self._serve(0)
        value: Any = record.value
        if self._encode is not None and value is not None:
            value = self._encode(value, self.topic)
        delivery = Delivery(self)
        if record.headers or record.timestamp is not None:
            self._produce_carefully(record, value, delivery)
            return delivery
        try:  # the way of nearly all records: one call
            self._produce(self.topic, value, record.key, self.partition, delivery)
        except (BufferError, KafkaException):
            self._produce_carefully(record, value, delivery)
        return delivery

    def _produce_carefully(self, record: Record[T], value: bytes | None, to: Delivery) -> None:
        at = record.timestamp
        self._records.produce(
            self.topic,
            value,
            key=record.key,
            headers=list(record.headers) if record.headers else None,
            partition=self.partition,
            timestamp_ms=0 if at is None else round(at.timestamp() * 1000),
            on_delivery=to,
        )

    def produce_and_flush(self, record: Record[T], timeout_s: float = _TIMEOUT_S) -> Delivered:
        """Write a record and wait until it and all before it are acknowledged.

        Returns:
            Where it stands.

        Raises:
            InvalidRecordError: The codec cannot encode its value.
            DeliveryError: A record was not delivered, or not within the time.
        """
        delivery = self.produce(record)
        self.flush(timeout_s)
        return delivery.result(timeout_s)

    def flush(self, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until every queued record is acknowledged.

        Args:
            timeout_s: Longest wait in seconds.

        Raises:
            DeliveryError: A record was not delivered, or not within the time.
        """
        self._records.flush(timeout_s)

    aflush = awaitable(flush)
    aproduce_and_flush = awaitable(produce_and_flush)

    def poll(self) -> int:
        """Take note of what was delivered meanwhile, without waiting.

        Returns:
            How many records are acknowledged by now.

        Raises:
            DeliveryError: A record was not delivered.
        """
        self._records.poll()
        return self._delivered

    @property
    def delivered(self) -> int:
        """Records acknowledged so far."""
        return self._delivered

    @property
    def in_flight(self) -> int:
        """Records queued and not yet acknowledged."""
        return self._records.in_flight

    def statistics(self) -> dict[str, Any]:
        """The client's own figures, of the last 5 s at most; empty before the first are there.

        https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md
        """
        self._records.poll()
        found: dict[str, Any] = json.loads(self._statistics or "{}")
        return found

    def close(self) -> None:
        """Flush.

        Raises:
            DeliveryError: A record was not delivered.
        """
        self.flush()

    def _leave(self, *, failed: bool) -> None:
        if failed:
            self._records.discard()
        else:
            self.flush()

    def _on_statistics(self, text: str) -> None:
        self._statistics = text

    def _fail(self, error: KafkaError, topic: str) -> DeliveryError:
        """Take note of a lost record: from now on every call raises."""
        failure = self._records.fail(error, topic)

        def refuse(*_record: object) -> None:
            raise failure

        self._produce = refuse
        return failure

    def _serve(self, timeout_s: float) -> None:
        """Let the client make its delivery reports, waiting for one."""
        self._records.serve(timeout_s)

    def _serve_meanwhile(self) -> None:
        """Have delivery reports made as long as records are on their way: somebody awaits one."""
        with self._lock:
            if self._server is None:
                self._server = threading.Thread(
                    target=self._serve_all, name="delivery-reports", daemon=True
                )
                self._server.start()

    def _serve_all(self) -> None:
        while True:
            self._serve(_POLL_S)
            with self._lock:
                if self._records.in_flight == 0:
                    self._server = None
                    return
