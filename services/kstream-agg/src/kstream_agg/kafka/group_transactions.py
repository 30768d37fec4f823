"""Transactions of a consumer group's member: results and input offsets become visible together.

Two fences keep a member out that the group has given up:

- **by generation** (KIP-447): the offsets go into the transaction with the member's generation;
  the group's coordinator refuses those of a member it no longer knows.
- **by id**: `fence` takes a former member's transactional id over. Its open transaction is aborted
  at once, not when it times out, and whatever it still sends is refused.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from kstream_agg.core.errors import CommitUncertainError, DeliveryError, FencedError, KStreamError
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.kafka.transactions import TransactionWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Consumer, TopicPartition

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import KafkaSettings

__all__ = ["GroupTransactionWriter", "fence"]

# A member that is killed is fenced by its successor. Only where none comes does the broker have to
# wait so long before it aborts, and readers of the results with it.
_TIMEOUT_MS: Final = 60_000
_STEP_S: Final = 1.0
_LOOK_S: Final = 0.25
_DELIVERY_LOOK_S: Final = 0.005  # most of a commit's records are delivered before it is begun
# librdkafka's call does not keep its own timeout: a group coordinator that it remembers and that
# has gone keeps it waiting for good (librdkafka issues 5456 and 5511). Brokers that throttle a
# member let it wait for some seconds too.
_HUNG_S: Final = 20.0
_FENCE_S: Final = 15.0
_FENCED: Final = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001 - how librdkafka names its own codes
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)
# These come again however often a transaction is begun anew.
_HOPELESS: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - as above
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - as above
    }
)


class GroupTransactionWriter(TransactionWriter):
    """A transactional producer whose transactions carry the offsets of a consumer.

    `produce` raises `CommitUncertainError` when the transaction cannot be committed any more, and
    `FencedError` when another member has taken this one's place.

    Args:
        settings: How to reach the brokers; `properties` override the defaults here.
        metrics: Counts deliveries.
        client_id: Named in the brokers' logs and metrics.
        transactional_id: This member's own.
        make_producer: Makes the client of its properties.
        hung_s: A call of the client that takes longer, in seconds, is not waited for.
    """

    def __init__(  # noqa: PLR0913 - two of them only tests change
        self,
        settings: KafkaSettings,
        metrics: Metrics,
        client_id: str,
        transactional_id: str,
        *,
        make_producer: Callable[[dict[str, Any]], Producer] = Producer,
        hung_s: float = _HUNG_S,
    ) -> None:
        super().__init__(
            _with_timeout(settings),
            metrics,
            client_id,
            transactional_id,
            make_producer=make_producer,
        )
        self._hung_s = hung_s
        self._hung = False

    def send_offsets(
        self,
        consumer: Consumer,
        offsets: Sequence[TopicPartition],
        keep_waiting: Callable[[], bool],
    ) -> None:
        """Put the group's offsets into the transaction, beginning one when there is none.

        Args:
            consumer: The member they are committed for, in its present generation.
            offsets: The next offset of each partition.
            keep_waiting: Asked every second; False ends the wait.

        Raises:
            CommitUncertainError: The group refuses the member's generation, or the wait was ended.
            FencedError: Another member has taken this one's place.
        """
        if not self.pending:
            self._begin()
            self.pending = 1
        # What waits in front of the offsets is not what keeps them from being answered.
        # Not by `flush`: a fatal error that it meets breaks the client's next delivery report.
        while left := len(self._producer):
            if not keep_waiting():
                raise CommitUncertainError(f"Kafka has not taken {left} records")
            self._serve(_DELIVERY_LOOK_S)
        member = consumer.consumer_group_metadata()
        while True:
            sending = _Call(
                lambda: self._producer.send_offsets_to_transaction(list(offsets), member, _STEP_S)
            )
            try:
                if not sending.returns(self._hung_s, keep_waiting):
                    self._hung = True
                    raise CommitUncertainError("Kafka's client waits for a coordinator for good")
            except KafkaException as error:
                if not error.args[0].retriable() or not keep_waiting():
                    raise self._failed(error, "the offsets") from error
            else:
                return

    def commit(self, keep_waiting: Callable[[], bool]) -> None:
        """Commit; see `TransactionWriter.commit`.

        Raises:
            CommitUncertainError: It was aborted, or the wait was ended.
            FencedError: Another member has taken this one's place.
        """
        try:
            super().commit(keep_waiting)
        except DeliveryError as error:
            if error is self._failure:
                raise
            # The wait was ended: whether Kafka has committed is not known.
            raise CommitUncertainError(str(error), remedy=error.remedy) from error

    def abandon(self) -> None:
        """Abort the open transaction if that goes quickly.

        Raises:
            FencedError: Another member has taken this one's place.
        """
        if not self.pending:
            return
        self.pending = 0
        if self._hung:  # it answers nothing any more; its successor aborts
            return
        try:
            self._producer.abort_transaction(_STEP_S)
        except KafkaException as error:
            if error.args[0].code() in _FENCED:
                raise self._failed(error, "the transaction") from error

    def _failed(self, error: KafkaException, what: str) -> KStreamError:  # type: ignore[override]  # kinds of its own
        cause = self._cause(error)
        if cause.code() in _FENCED:
            return FencedError(
                "another worker has taken this one's partitions over",
                remedy="it was away for longer than the group waits (session.timeout.ms, "
                "max.poll.interval.ms); start it again",
            )
        if self._failure is not None and cause.code() in _HOPELESS:
            return self._failure
        if cause.code() in _HOPELESS:
            return kafka_failure(error, f"writing {what}")
        return CommitUncertainError(f"Kafka did not take {what}: {cause.str()}")


class _Call:
    """A call in a thread of its own, which is left behind when it does not return."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._raised: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="send offsets", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread
            self._raised = error

    def returns(self, within_s: float, keep_waiting: Callable[[], bool]) -> bool:
        """Whether it has returned in time; once nobody keeps waiting, it has two steps left.

        Raises:
            Exception: What the call raises.
        """
        self._thread.join(min(within_s, 2 * _STEP_S))
        deadline = time.monotonic() + max(0.0, within_s - 2 * _STEP_S)
        while self._thread.is_alive() and keep_waiting() and time.monotonic() < deadline:
            self._thread.join(_LOOK_S)
        if self._raised is not None:
            raise self._raised
        return not self._thread.is_alive()


def fence(settings: KafkaSettings, client_id: str, transactional_id: str) -> None:
    """Take a transactional id over: its open transaction is aborted, its holder refused.

    Raises:
        UnavailableError: The brokers do not answer in time.
        KStreamError: They refuse.
    """
    config = _with_timeout(settings).client_config()
    try:
        producer = Producer(
            config | {"client.id": client_id, "transactional.id": transactional_id, "log_level": 0}
        )
        producer.init_transactions(_FENCE_S)
    except KafkaException as error:
        raise kafka_failure(error, f"fencing the former worker '{transactional_id}'") from error


def _with_timeout(settings: KafkaSettings) -> KafkaSettings:
    timeouts = {
        "transaction.timeout.ms": _TIMEOUT_MS,
        "delivery.timeout.ms": _TIMEOUT_MS,
    }
    return settings.model_copy(update={"properties": timeouts | settings.properties})
