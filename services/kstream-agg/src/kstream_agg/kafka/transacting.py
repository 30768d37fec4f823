"""Transactions of the public API: records, and the offsets of what they were made from."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.metrics import Metrics
from kstream_agg.kafka.group_transactions import GroupTransactionWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from kstream_agg.core.settings import KafkaSettings
    from kstream_agg.kafka.codecs import Codec
    from kstream_agg.kafka.receiving import Reader
    from kstream_agg.kafka.record import Record

__all__ = ["Transactions"]

_TIMEOUT_S: Final = 60.0


class Transactions:
    """Writes records in transactions: readers of committed records see all of one, or none of it.

        with cluster.transactions("my-program") as transactions:
            with transactions.begin():
                transactions.produce("sums", Record(b"42"))
                transactions.commit_with(reader)

    The block's end commits, an error in it aborts. Made by `KafkaCluster.transactions`; used by
    one thread.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
        transactional_id: The same at every start of the program.
    """

    def __init__(self, settings: KafkaSettings, client_id: str, transactional_id: str) -> None:
        properties = {"log_level": 0} | settings.properties
        self._writer = GroupTransactionWriter(
            settings.model_copy(update={"properties": properties}),
            Metrics(CollectorRegistry()),
            client_id,
            transactional_id,
        )
        stop = threading.Event()
        timer = threading.Timer(_TIMEOUT_S, stop.set)
        timer.daemon = True
        timer.start()
        try:
            if not self._writer.start(stop):
                raise UnavailableError(
                    f"Kafka did not give the transactional id '{transactional_id}'",
                    remedy="are enough brokers up? kstream-agg cluster status",
                )
        finally:
            timer.cancel()

    def begin(self) -> Self:
        """A transaction, as the block of a `with`."""
        return self

    def produce(self, topic: str, record: Record[Any], codec: Codec[Any] | None = None) -> None:
        """Add a record to the transaction.

        Args:
            topic: Where to.
            record: What to write.
            codec: Encodes its value; default: it is bytes.

        Raises:
            CommitUncertainError: The transaction cannot be committed any more.
            FencedError: Another program has taken the transactional id over.
            InvalidRecordError: The codec cannot encode the value.
        """
        value: Any = record.value
        if codec is not None and value is not None:
            value = codec.encode(value, topic)
        at, key = record.timestamp, record.key
        self._writer.produce(
            topic,
            value,
            key=key.encode() if isinstance(key, str) else key,
            headers=list(record.headers) if record.headers else None,
            timestamp_ms=0 if at is None else round(at.timestamp() * 1000),
        )

    def commit_with(self, reader: Reader[Any]) -> None:
        """Commit a reader's place with the transaction: what it has handed out is done by it.

        Raises:
            ContractError: The reader is in no group.
            CommitUncertainError: The group refuses, or Kafka does not answer.
            FencedError: Another program has taken the transactional id over.
        """
        reader.hand_offsets(
            lambda consumer, places: self._writer.send_offsets(consumer, places, _patience())
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._writer.commit(_patience())
        else:
            self._writer.abandon()


def _patience() -> Callable[[], bool]:
    deadline = time.monotonic() + _TIMEOUT_S
    return lambda: time.monotonic() < deadline
