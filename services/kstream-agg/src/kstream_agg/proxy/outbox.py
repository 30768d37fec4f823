"""The producer of one worker, polled by its event loop.

The proxy holds a `confluent_kafka.Producer` of its own: the writer of the kafka layer stops at the
first record that fails, as a pipeline must; here a record's failure is its client's affair and
the next record's delivery goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.proxy.statistics import Statistics

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping


__all__ = ["Outbox"]

_log = get_logger(__name__)

# Often enough that a waiting client does not notice, seldom enough to serve reports in bulk.
_POLL_BUSY_S: Final = 0.002
_POLL_IDLE_S: Final = 0.1
_FLUSH_SLICE_S: Final = 0.1


class Outbox:
    """Hands records to librdkafka and serves its reports.

    Args:
        config: librdkafka's properties.
        loop: The event loop that polls.
        wake: Called when Kafka has come back.

    Raises:
        KStreamError: librdkafka refuses a property.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._wake = wake
        self.statistics = Statistics()
        self.away = True
        """Whether no broker is connected, as far as is known."""
        callbacks = {
            "error_cb": self._on_error,
            "stats_cb": self._on_statistics,
            "log_level": 3,  # connection losses are told by us, once
        }
        try:
            self._producer = Producer(dict(config) | callbacks)
        except KafkaException as error:
            raise kafka_failure(error, "starting the Kafka producer") from error
        self.produce = self._producer.produce
        """librdkafka's own `produce`, without a detour."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._busy = False

    def start(self) -> None:
        """Begin to poll."""
        self._poll()

    def poll_soon(self) -> None:
        """There is something to wait for: poll at the busy pace from now on."""
        if not self._busy and not self._closed:
            self._busy = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(_POLL_BUSY_S, self._poll)

    def __len__(self) -> int:
        """Records without a delivery report."""
        return len(self._producer)

    def topics(self, timeout_s: float) -> dict[str, int]:
        """All topics and their numbers of partitions; blocks, call it in a thread.

        Raises:
            UnavailableError: No broker answers within `timeout_s` seconds.
        """
        try:
            found = self._producer.list_topics(timeout=timeout_s)
        except KafkaException as error:
            raise kafka_failure(error, "reading the topics") from error
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    def seen(self) -> None:
        """Kafka has answered something."""
        if self.away:
            self.away = False
            _log.info("Kafka is there")
            self._wake()

    async def flush(self, timeout_s: float, sleep: Callable[[float], Any]) -> int:
        """Wait until every record has its report.

        Args:
            timeout_s: Longest wait in seconds.
            sleep: Waits without blocking the loop.

        Returns:
            How many have none.
        """
        waited = 0.0
        while len(self._producer) and waited < timeout_s:
            self._producer.poll(0)
            await sleep(_FLUSH_SLICE_S)
            waited += _FLUSH_SLICE_S
        self._producer.poll(0)
        return len(self._producer)

    def close(self) -> None:
        """Stop polling and forget what is queued."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._producer.purge()
        self._producer.poll(0)

    def _poll(self) -> None:
        if self._closed:
            return
        self._producer.poll(0)
        self._busy = len(self._producer) > 0
        self._timer = self._loop.call_later(
            _POLL_BUSY_S if self._busy else _POLL_IDLE_S, self._poll
        )

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - librdkafka's local codes begin with an underscore
            if not self.away:
                self.away = True
                _log.warning("Kafka is away", error=error.str())
        elif error.code() not in {KafkaError._TRANSPORT, KafkaError._RESOLVE}:  # noqa: SLF001 - as above
            _log.warning("librdkafka reports an error", error=error.str(), code=error.name())

    def _on_statistics(self, text: str) -> None:
        try:
            found = self.statistics.read(text)
        except msgspec.DecodeError as error:
            _log.warning("librdkafka's statistics cannot be read", error=str(error))
            return
        if found:
            self.seen()
        elif not self.away:
            self.away = True
            _log.warning("Kafka is away", error="no broker is connected")
