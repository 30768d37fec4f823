"""The transactional producer: what one transaction holds is read whole or not at all.

One program at a time holds a transactional id. `start` takes it over: an open transaction of an
earlier holder is aborted, and that holder, should it still live, is refused from then on
("fenced"). https://kafka.apache.org/documentation/#semantics
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from kstream_agg.core.errors import DeliveryError, UnavailableError
from kstream_agg.core.metrics import RECORDS_DELIVERED, RECORDS_FAILED, RECORDS_IN_FLIGHT
from kstream_agg.kafka.failures import delivery_failure, kafka_failure
from kstream_agg.kafka.stranding import StrandingWatch, answers_newcomers

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from confluent_kafka import Message

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.writer import Headers

__all__ = ["TransactionWriter"]

_DEFAULTS: Final[dict[str, str | int | float | bool]] = {
    "partitioner": "murmur2_random",  # where Java clients would put the same key
    "compression.type": "lz4",
    # A commit flushes at once; this only lets records that follow each other travel together.
    "linger.ms": 5,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 65_536,  # memory bound
    # As long as brokers allow by default: a transaction outlives their restarts and short
    # outages. A holder that died is no matter: its successor aborts what it left.
    "transaction.timeout.ms": 900_000,
    "delivery.timeout.ms": 900_000,
    "delivery.report.only.error": True,  # a commit says that all was delivered
}
_STEP_S: Final = 1.0  # between two looks at whether to go on waiting
_FENCED: Final = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001 - how librdkafka names its own codes
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)


class TransactionWriter:
    """Writes records in transactions; used by one thread.

    A transaction begins with its first record. Whatever cannot be committed raises, and the
    writer is then of no more use: nothing of the transaction is ever read, and what was to be
    written is written again by the next holder of the id.

    Args:
        settings: How to reach the brokers; `properties` override the defaults here.
        metrics: Counts deliveries.
        client_id: Named in the brokers' logs and metrics.
        transactional_id: The same for every start of one service.
        make_producer: Makes the client of its properties.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        metrics: Metrics,
        client_id: str,
        transactional_id: str,
        *,
        make_producer: Callable[[dict[str, Any]], Producer] = Producer,
    ) -> None:
        self._id = transactional_id
        self._stranding = StrandingWatch(lambda: answers_newcomers(settings))
        own = {
            "client.id": client_id,
            "transactional.id": transactional_id,
            "on_delivery": self._on_failed_delivery,
            **self._stranding.properties,
        }
        try:
            self._producer = make_producer(_DEFAULTS | settings.client_config() | own)
        except KafkaException as error:
            raise kafka_failure(error, "starting the Kafka producer") from error
        self._produce = self._producer.produce
        self._delivered_total = metrics.counter(RECORDS_DELIVERED)
        self._failed_total = metrics.counter(RECORDS_FAILED)
        metrics.gauge(RECORDS_IN_FLIGHT).set_function(lambda: self.pending)
        self._topics: Counter[str] = Counter()
        self._failure: DeliveryError | None = None
        self.pending = 0
        """Records of the open transaction."""
        self.delivered = 0
        """Records committed so far."""

    def start(self, stop: threading.Event) -> bool:
        """Take the transactional id over; False when `stop` was set before that was possible.

        Raises:
            KStreamError: The brokers refuse.
        """
        while not stop.is_set():
            try:
                self._producer.init_transactions(_STEP_S * 5)
            except KafkaException as error:
                failure = kafka_failure(error, f"taking over the transactional id '{self._id}'")
                if not (error.args[0].retriable() or isinstance(failure, UnavailableError)):
                    raise failure from error
            else:
                return True
        return False

    def produce(  # noqa: PLR0913 - a record's parts, by name
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
    ) -> None:
        """Add a record to the transaction, beginning one when there is none.

        Args:
            topic: Where to.
            value: The encoded value; None is a tombstone.
            key: Decides the partition; None spreads at random.
            headers: Name and value pairs.
            partition: -1 leaves it to the key.
            timestamp_ms: When it happened, since the epoch; 0 is now.

        Raises:
            DeliveryError: The transaction cannot be committed any more, and its kinds that a
                subclass raises in its place.
        """
        if not self.pending:
            self._begin()
        while True:
            try:
                self._produce(topic, value, key, partition, timestamp=timestamp_ms, headers=headers)
                break
            except BufferError:
                self._wait_for_room()
            except KafkaException as error:
                raise self._failed(error, topic) from error
        self.pending += 1
        self._topics[topic] += 1

    def poll(self) -> None:
        """Serve librdkafka's callbacks without waiting.

        Raises:
            DeliveryError: The producer is of no more use: fenced, for one.
        """
        self._serve(0)

    def commit(self, keep_waiting: Callable[[], bool]) -> None:
        """Commit the open transaction, waiting for Kafka as long as it takes.

        Args:
            keep_waiting: Asked every second; False ends the wait.

        Raises:
            DeliveryError: It was aborted, another program holds the transactional id, the
                client has lost its brokers for good, or the wait was ended.
        """
        if not self.pending:
            return
        while True:
            try:
                self._producer.commit_transaction(_STEP_S)
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise self._failed(error, "the transaction") from error
                if not keep_waiting():
                    raise DeliveryError(
                        f"Kafka has not committed {self.pending} records",
                        remedy="is Kafka running? they are fetched and written again after a "
                        "restart",
                    ) from error
                self._producer.poll(0)
                if self._stranding.is_stranded():
                    raise DeliveryError(
                        "Kafka answers, but not this client, which finds no broker any more",
                        remedy="start again: the open transaction is written by the next start",
                    ) from error
            else:
                break
        for topic, count in self._topics.items():
            self._delivered_total.labels(topic).inc(count)
        self.delivered += self.pending
        self.pending = 0
        self._topics.clear()

    def abandon(self) -> None:
        """Abort the open transaction if that goes quickly; its records are never read."""
        if not self.pending:
            return
        # Where it fails, the next holder of the id aborts, or the broker after the time-out.
        with contextlib.suppress(KafkaException):
            self._producer.abort_transaction(_STEP_S)
        self.pending = 0

    def _wait_for_room(self) -> None:
        self._serve(0.1)

    def _serve(self, seconds: float) -> None:
        """Serve librdkafka's callbacks, waiting for the first of them.

        Raises:
            KStreamError: The producer is of no more use.
        """
        try:
            self._producer.poll(seconds)
        except KafkaException as error:
            raise self._failed(error, "the transaction") from error

    def _begin(self) -> None:
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise self._failed(error, "a transaction") from error

    def _failed(self, error: KafkaException, what: str) -> DeliveryError:
        cause = self._cause(error)
        if cause.code() in _FENCED:
            return DeliveryError(
                f"another program has taken over the transactional id '{self._id}'",
                remedy="run one program under it at a time; each of several raw-producers needs a "
                "transactional_id and channels of its own",
            )
        return self._failure or delivery_failure(cause, what)

    def _cause(self, error: KafkaException) -> KafkaError:
        """What has happened; a producer that is of no more use often says no more than that."""
        cause: KafkaError = error.args[0]
        if cause.code() == KafkaError._FATAL:  # noqa: SLF001 - as above
            try:
                # Refused for the reason that made it so (librdkafka, INTRODUCTION.md).
                self._producer.abort_transaction(_STEP_S)
            except KafkaException as told:
                reason: KafkaError = told.args[0]
                return reason
        return cause

    def _on_failed_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        topic = message.topic() or ""
        self._failed_total.labels(topic).inc()
        if self._failure is None:
            self._failure = delivery_failure(error, topic)
