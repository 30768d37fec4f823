"""The idempotent producer: one delivery callback for all records, no failure ignored."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException, Producer

from kstream_agg.core.errors import DeliveryError
from kstream_agg.core.metrics import RECORDS_DELIVERED, RECORDS_FAILED, RECORDS_IN_FLIGHT
from kstream_agg.kafka.failures import delivery_failure, kafka_failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from confluent_kafka import KafkaError, Message
    from prometheus_client import Counter

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import KafkaSettings

    DeliveryReport = Callable[[KafkaError | None, Message], None]

__all__ = ["PRODUCER_DEFAULTS", "HeaderPairs", "Headers", "RecordWriter"]

Headers = list[tuple[str, str | bytes | None]]
"""Names and values of a record's headers, in order; names may repeat."""

HeaderPairs = tuple[tuple[str, str | bytes | None], ...]
"""The same, for records that do not change."""

PRODUCER_DEFAULTS: Final[dict[str, str | int | float | bool]] = {
    "enable.idempotence": True,  # acks=all and no reordering come with it
    "partitioner": "murmur2_random",  # where Java clients would put the same key
    "compression.type": "lz4",
    "linger.ms": 5,  # at full speed batches fill before; at low speed nobody sees 5 ms
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 65_536,  # memory bound: a full queue slows its source down
    # Longer than a broker's restart; after it the record has failed, which is fatal.
    "delivery.timeout.ms": 300_000,
}
"""The writer's librdkafka properties, before the settings' own."""


class RecordWriter:
    """Writes records; a context manager that flushes at its end.

    `produce` hands a record to librdkafka and returns at once; while librdkafka's queue is full
    it waits, which is how a slow Kafka slows its source down. A record that was not delivered
    makes every later call raise: what follows a lost record must not be acknowledged.

    Args:
        settings: How to reach the brokers; `properties` override the defaults here.
        metrics: Counts deliveries.
        client_id: Named in the brokers' logs and metrics.
        make_producer: Makes the client of its properties.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        metrics: Metrics,
        client_id: str,
        make_producer: Callable[[dict[str, Any]], Producer] = Producer,
    ) -> None:
        config = PRODUCER_DEFAULTS | settings.client_config() | {"client.id": client_id}
        try:
            self._producer = make_producer(config)
        except KafkaException as error:
            raise kafka_failure(error, "starting the Kafka producer") from error
        self._produce = self._producer.produce
        self._delivered_total = metrics.counter(RECORDS_DELIVERED)
        self._failed_total = metrics.counter(RECORDS_FAILED)
        self._delivered_by_topic: dict[str, Counter] = {}
        metrics.gauge(RECORDS_IN_FLIGHT).set_function(lambda: len(self._producer))
        self._failure: DeliveryError | None = None
        self.bare_produce = self._producer.produce
        """The client's own call, for whom each record's microseconds count."""
        self.delivered = 0
        """Records acknowledged so far."""

    def produce(  # noqa: PLR0913 - a record's parts, by name
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        on_delivery: DeliveryReport | None = None,
    ) -> None:
        """Queue one record.

        Args:
            topic: Where to.
            value: The encoded value; None is a tombstone.
            key: Decides the partition; None spreads at random.
            headers: Name and value pairs.
            partition: -1 leaves it to the key.
            timestamp_ms: When it happened, since the epoch; 0 is now.
            on_delivery: Called with the outcome in place of this writer's own report, which
                counts it, or for a failure makes the writer raise; it is to see to that itself.

        Raises:
            DeliveryError: An earlier record was not delivered, or this one never can be.
        """
        if self._failure is not None:
            raise self._failure
        while True:
            try:
                self._produce(
                    topic,
                    value,
                    key,
                    partition,
                    on_delivery or self._on_delivery,
                    timestamp=timestamp_ms,
                    headers=headers,
                )
            except BufferError:
                self._producer.poll(0.1)
                if self._failure is not None:
                    raise self._failure from None
            except KafkaException as error:
                raise delivery_failure(error.args[0], topic) from error
            else:
                return

    def poll(self) -> int:
        """Serve delivery reports without waiting; call it once a batch.

        Returns:
            How many were served.

        Raises:
            DeliveryError: A record was not delivered.
        """
        served = self._producer.poll(0)
        if self._failure is not None:
            raise self._failure
        return served

    def serve(self, timeout_s: float) -> None:
        """Serve delivery reports, waiting for the first; failures are raised by other calls."""
        self._producer.poll(timeout_s)

    def flush(
        self, timeout_s: float = 60.0, *, keep_waiting: Callable[[], bool] | None = None
    ) -> None:
        """Wait until every queued record is acknowledged.

        Args:
            timeout_s: Longest wait in seconds.
            keep_waiting: Asked every 0.2 s; False ends the wait early.

        Raises:
            DeliveryError: A record was not delivered, or not within the time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = self._producer.flush(min(0.2, max(0.0, deadline - time.monotonic())))
            if self._failure is not None:
                raise self._failure
            if left == 0:
                return
            ended = keep_waiting is not None and not keep_waiting()
            if ended or time.monotonic() >= deadline:
                raise DeliveryError(
                    f"{left} records are not acknowledged after {timeout_s:.0f} s",
                    remedy="is Kafka running? what is not acknowledged is sent again after a "
                    "restart",
                )

    @property
    def in_flight(self) -> int:
        """Records queued and not yet acknowledged."""
        return len(self._producer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.flush()
        else:
            self.discard()

    def discard(self) -> None:
        """Forget what is queued: its reason to be has failed."""
        self._producer.purge()

    def fail(self, error: KafkaError, topic: str) -> DeliveryError:
        """Take note of a record that was not delivered: every later call raises.

        Returns:
            The error of this record.
        """
        self._failed_total.labels(topic).inc()
        failure = delivery_failure(error, topic)
        if self._failure is None:
            self._failure = failure
        return failure

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        topic = message.topic() or ""
        if error is None:
            self.delivered += 1
            counter = self._delivered_by_topic.get(topic)
            if counter is None:
                counter = self._delivered_by_topic[topic] = self._delivered_total.labels(topic)
            counter.inc()
            return
        self.fail(error, topic)
