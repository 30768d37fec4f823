"""Transactions that tell, before they are committed, where each of their records stands."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException

from kstream_agg.core.errors import DeliveryError
from kstream_agg.kafka.dead_letters import Place
from kstream_agg.kafka.transactions import TransactionWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.writer import Headers

__all__ = ["PlacedTransactionWriter"]

_STEP_S: Final = 1.0
# Readers of the topics wait so long for a program that was killed inside a transaction and is not
# started again.
_TIMEOUTS: Final = {"transaction.timeout.ms": 60_000, "delivery.timeout.ms": 60_000}


class PlacedTransactionWriter(TransactionWriter):
    """A transactional producer for few records, whose places matter.

    Args:
        settings: How to reach the brokers; `properties` override the defaults.
        metrics: Counts deliveries.
        client_id: Named in the brokers' logs and metrics.
        transactional_id: The same for every start of one program.
    """

    def __init__(
        self, settings: KafkaSettings, metrics: Metrics, client_id: str, transactional_id: str
    ) -> None:
        # Reports of success are a call into Python a record: off by default.
        properties = _TIMEOUTS | settings.properties | {"delivery.report.only.error": False}
        super().__init__(
            settings.model_copy(update={"properties": properties}),
            metrics,
            client_id,
            transactional_id,
        )
        self._places: list[Place | None] = []

    def place(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Headers,
        partition: int = -1,
    ) -> None:
        """Add a record to the transaction, beginning one when there is none.

        Args:
            topic: Where to.
            value: The value; None is a tombstone.
            key: Decides the partition where none is named.
            headers: Name and value pairs.
            partition: -1 leaves it to the key.

        Raises:
            DeliveryError: The transaction cannot be committed any more.
        """
        if not self.pending:
            self._begin()
            self._places = []
        note = partial(self._note, self._places, len(self._places))
        while True:
            try:
                self._produce(topic, value, key, partition, headers=headers, on_delivery=note)
                break
            except BufferError:
                self._wait_for_room()
            except KafkaException as error:
                raise self._failed(error, topic) from error
        self._places.append(None)
        self.pending += 1
        self._topics[topic] += 1

    def places(self, keep_waiting: Callable[[], bool]) -> list[Place]:
        """Where the open transaction's records stand, in the order of `place`.

        Args:
            keep_waiting: Asked every second; False ends the wait.

        Raises:
            DeliveryError: Kafka has not taken them all.
        """
        try:
            while self._producer.flush(_STEP_S) and self._failure is None and keep_waiting():
                pass
        except KafkaException as error:
            raise self._failed(error, "the transaction") from error
        found = [place for place in self._places if place is not None]
        if len(found) != len(self._places):
            raise self._failure or DeliveryError(
                f"Kafka has taken {len(found)} of {len(self._places)} records",
                remedy="is Kafka running? nothing of them is read until they are sent again",
            )
        return found

    def _note(
        self,
        places: list[Place | None],
        number: int,
        error: KafkaError | None,
        message: Message,
    ) -> None:
        self._on_failed_delivery(error, message)
        if error is None:
            places[number] = Place(
                message.topic() or "", int(message.partition() or 0), int(message.offset() or 0)
            )
