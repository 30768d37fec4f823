"""The raw-producer: a source of trades, wired to Kafka.

The event loop of the main thread reads the exchange and answers its heartbeats; a second thread
encodes and produces. Between them stands a bounded `HandOver`. A later source (history over REST)
puts its receipts into the same one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import DeliveryError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import dead_letter_topic
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.deribit.client import StreamClient
from kstream_agg.deribit.handover import HandOver
from kstream_agg.deribit.publisher import TradePublisher
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.service import ServiceContext
    from kstream_agg.deribit.settings import RawProducerSettings

__all__ = ["PublishWorker", "run_raw_producer"]

_log = get_logger(__name__)

_STOP_WITHIN_S: Final = 10.0
_STANDSTILL_S: Final = 60.0  # a broker's restart takes less
_IDLE_WAIT_S: Final = 0.2
_SPAN_WAIT_S: Final = 0.01  # so that a span's end is its delivery, not our next look


def run_raw_producer(settings: RawProducerSettings, ctx: ServiceContext) -> None:
    """Bring trades from the exchange into Kafka until asked to stop.

    Raises:
        ChannelRefusedError: The exchange does not give us the channels.
        SchemaIncompatibleError: The registry refuses the RawTrade schema.
        DeliveryError: Kafka did not take a record.
    """
    schema_ids = _prepare(settings, ctx)
    if schema_ids is None:
        return
    with RecordWriter(settings.kafka, ctx.metrics, ctx.name) as writer:
        publisher = TradePublisher(
            writer, settings.channels, schema_ids, ctx.metrics, ctx.telemetry.tracer
        )
        handover = HandOver(settings.exchange.queue_trades)
        worker = PublishWorker(handover, publisher, writer, ctx.clock, on_failure=ctx.stop.set)
        ctx.health.add_check("kafka", worker.check)
        ctx.health.set_not_ready(f"connecting to the exchange at {settings.exchange.url}")
        client = StreamClient(settings.exchange, settings.channels, handover, ctx)
        worker.start()
        try:
            asyncio.run(client.run())
        finally:
            handover.close()
            worker.finish(_STOP_WITHIN_S)


class PublishWorker:
    """The thread that takes receipts and produces their records.

    Args:
        handover: Where they come from.
        publisher: Makes records of them.
        writer: Serves its delivery reports.
        clock: Measures how long nothing is delivered.
        on_failure: Called once when the thread cannot go on.
    """

    def __init__(
        self,
        handover: HandOver,
        publisher: TradePublisher,
        writer: RecordWriter,
        clock: Clock,
        on_failure: Callable[[], None],
    ) -> None:
        self._handover = handover
        self._publisher = publisher
        self._writer = writer
        self._clock = clock
        self._on_failure = on_failure
        self._delivered = 0
        self._progress_at = clock.monotonic()
        self._failure: BaseException | None = None
        # A daemon: a producer that waits for a dead Kafka must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def start(self) -> None:
        """Begin to take receipts."""
        self._thread.start()

    def finish(self, within_s: float) -> None:
        """Wait until what was handed over is acknowledged; the hand-over must be closed.

        Args:
            within_s: Longest wait in seconds.

        Raises:
            DeliveryError: Kafka has not taken everything.
        """
        deadline = time.monotonic() + within_s
        self._thread.join(within_s)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise DeliveryError(
                f"Kafka took nothing for {within_s:.0f} s: {len(self._handover)} trades and what "
                "was on its way are lost",
                remedy="is Kafka running?",
            )
        self._writer.flush(max(0.0, deadline - time.monotonic()))
        self._publisher.end_spans()

    def check(self) -> str | None:
        """A health check: what is wrong when records wait and none is delivered."""
        still = self._clock.monotonic() - self._progress_at
        if still <= _STANDSTILL_S:
            return None
        waiting = self._writer.in_flight
        return f"Kafka has taken nothing for {still:.0f} s, while {waiting} records wait"

    def _note_progress(self) -> None:
        delivered = self._writer.delivered
        if delivered != self._delivered or self._writer.in_flight == 0:
            self._delivered = delivered
            self._progress_at = self._clock.monotonic()

    def _run(self) -> None:
        try:
            while not self._handover.finished:
                busy = self._publisher.has_open_spans
                receipt = self._handover.get(_SPAN_WAIT_S if busy else _IDLE_WAIT_S)
                if receipt is not None:
                    self._publisher.publish(receipt)
                self._writer.poll()
                self._publisher.end_spans()
                self._note_progress()
        except BaseException as error:  # noqa: BLE001 - a thread's end must reach the main thread, whatever it is
            self._failure = error
            self._on_failure()


def _prepare(settings: RawProducerSettings, ctx: ServiceContext) -> dict[str, int] | None:
    """Topics and schemas; None when asked to stop before they are there."""
    cluster = KafkaCluster(settings.kafka, ctx.name)
    ctx.health.set_not_ready(f"waiting for Kafka at {settings.kafka.bootstrap_servers}")
    if not cluster.wait_for_brokers(ctx.stop):
        return None
    topics = [
        configuration
        for topic in settings.raw_topics
        for configuration in (
            topic_configuration(topic, settings.topic),
            topic_configuration(dead_letter_topic(topic), settings.topic, partitions=1),
        )
    ]
    if not _until_available(ctx.stop, lambda: cluster.create_topics(topics)):
        return None
    ctx.health.set_not_ready(f"waiting for the schema registry at {settings.registry.url}")
    with SchemaRegistry(settings.registry) as registry:
        return _register(registry, settings.raw_topics, ctx.stop)


def _register(
    registry: SchemaRegistry, topics: Sequence[str], stop: threading.Event
) -> dict[str, int] | None:
    schema_ids: dict[str, int] = {}

    def register() -> None:
        for topic in topics:
            schema_ids[topic] = registry.register_value(topic, RAW_TRADE)

    if registry.wait(stop) and _until_available(stop, register):
        return schema_ids
    return None


def _until_available(stop: threading.Event, step: Callable[[], object]) -> bool:
    """Repeat a step while what it needs does not answer; False when asked to stop."""
    while not stop.is_set():
        try:
            step()
        except UnavailableError as error:
            _log.warning("trying again", reason=str(error))
            stop.wait(1.0)
        else:
            return True
    return False
