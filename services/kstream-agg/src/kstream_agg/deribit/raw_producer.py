"""The raw-producer: a source of trades, wired to Kafka.

The event loop of the main thread reads the source and answers its heartbeats; a second thread
encodes, produces and commits. Between them stands a bounded `HandOver`. A start:

    1. Topics and schemas are made.
    2. The transactional id is taken over: what an earlier holder left open is aborted.
    3. The progress topics are read to their ends: that is where this start goes on.
    4. The stream is subscribed to, and what was missed since is fetched from the history.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import channel_topic, dead_letter_topic, gaps_topic, progress_topic
from kstream_agg.core.schemas import RAW_TRADE, SOURCE_PROGRESS, TRADE_GAP
from kstream_agg.core.service import until_available
from kstream_agg.deribit.backfill import BACKFILL_PATH, backfill_action, fetch_period
from kstream_agg.deribit.handover import HandOver
from kstream_agg.deribit.lane import Lane, LaneSchemas
from kstream_agg.deribit.progress import restore_ledger, restore_periods
from kstream_agg.deribit.publish_worker import PublishWorker
from kstream_agg.deribit.publisher import Pacing, TradePublisher
from kstream_agg.deribit.source import make_source
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration, topic_configuration
from kstream_agg.kafka.compacted import read_compacted
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.transactions import TransactionWriter
from kstream_agg.kafka.wire import RecordDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.core.settings import TopicSettings
    from kstream_agg.deribit.progress import Period
    from kstream_agg.deribit.settings import RawProducerSettings
    from kstream_agg.deribit.source import SourceItem

__all__ = ["run_backfill", "run_raw_producer"]

_log = get_logger(__name__)

_STOP_WITHIN_S: Final = 10.0
_FULL_PAUSE_S: Final = 0.005


class _Start(NamedTuple):
    """What a start needs to know."""

    lanes: list[Lane]
    writer: TransactionWriter


def run_raw_producer(settings: RawProducerSettings, ctx: ServiceContext) -> None:
    """Bring trades from the exchange into Kafka until asked to stop.

    Raises:
        ContractError: The exchange does not give us the channels or refuses the login, or the
            registry refuses a schema.
        DeliveryError: A transaction cannot be committed, or another raw-producer has taken over.
    """
    settings.exchange.login()  # what is wrong with it is told before anything starts

    def receive(handover: HandOver) -> Coroutine[None, None, None]:
        ctx.health.add_action(BACKFILL_PATH, backfill_action(handover, settings.channels))
        ctx.health.set_not_ready(f"connecting to the exchange at {settings.exchange.url}")
        return _receive(settings, ctx, handover)

    _publish_while(settings, ctx, receive)


def run_backfill(
    settings: RawProducerSettings,
    ctx: ServiceContext,
    period: Period,
    on_progress: Callable[[Period], None],
) -> None:
    """Fetch a period in place of the raw-producer, which must not run: it would be ended.

    Args:
        settings: With one channel.
        ctx: Of this program.
        period: What is fetched.
        on_progress: Told how far it is.

    Raises:
        DeliveryError: A transaction cannot be committed.
    """
    _publish_while(
        settings, ctx, lambda handover: fetch_period(settings, ctx, handover, period, on_progress)
    )


def _publish_while(
    settings: RawProducerSettings,
    ctx: ServiceContext,
    receive: Callable[[HandOver], Coroutine[None, None, None]],
) -> None:
    start = _prepare(settings, ctx)
    if start is None:
        return
    pacing = Pacing(
        settings.commit.interval_s, settings.commit.records, settings.exchange.lag_warning_s
    )
    publisher = TradePublisher(start.writer, start.lanes, ctx, pacing)
    handover = HandOver(settings.exchange.queue_bytes)
    worker = PublishWorker(handover, publisher, start.writer, ctx.clock, on_failure=ctx.stop.set)
    ctx.health.add_check("kafka", worker.check)
    worker.start()
    try:
        asyncio.run(receive(handover))
    finally:
        handover.close()
        worker.finish(_STOP_WITHIN_S)


async def _receive(settings: RawProducerSettings, ctx: ServiceContext, handover: HandOver) -> None:
    """Step 4: whatever the source gives, until it ends or is asked to stop."""
    resume = await handover.ask(
        lambda publisher: {channel: lane.view() for channel, lane in publisher.lanes.items()}
    )
    async for item in make_source(settings, ctx).items(resume):
        await _hand_over(item, handover, ctx)


async def _hand_over(item: SourceItem, handover: HandOver, ctx: ServiceContext) -> None:
    """Wait for room, but not for ever when asked to stop: what is left out is fetched again."""
    while not handover.try_put(item):
        if ctx.stop.is_set():
            return
        await asyncio.sleep(_FULL_PAUSE_S)


def _prepare(settings: RawProducerSettings, ctx: ServiceContext) -> _Start | None:
    """Steps 1 to 3; None when asked to stop before they are done."""
    cluster = KafkaCluster(settings.kafka, ctx.name)
    ctx.health.set_not_ready(f"waiting for Kafka at {settings.kafka.bootstrap_servers}")
    if not cluster.wait_for_brokers(ctx.stop):
        return None
    topics = [
        configuration
        for topic in settings.raw_topics
        for configuration in _configurations(topic, settings.topic)
    ]
    if not until_available(ctx.stop, lambda: cluster.create_topics(topics)):  # 1.
        return None
    writer = TransactionWriter(settings.kafka, ctx.metrics, ctx.name, settings.transactional_id)
    if not writer.start(ctx.stop):  # 2.
        return None
    ctx.health.set_not_ready(f"waiting for the schema registry at {settings.registry.url}")
    lanes: list[Lane] = []
    with SchemaRegistry(settings.registry) as registry:
        if not registry.wait(ctx.stop):
            return None

        def restore() -> None:
            lanes[:] = [
                _open_lane(channel, registry, settings, ctx.name) for channel in settings.channels
            ]

        if not until_available(ctx.stop, restore):  # 3.
            return None
    return _Start(lanes, writer)


def _configurations(topic: str, settings: TopicSettings) -> Iterator[TopicConfiguration]:
    yield topic_configuration(topic, settings)
    yield topic_configuration(dead_letter_topic(topic), settings, partitions=1)
    yield topic_configuration(gaps_topic(topic), settings, partitions=1)
    yield TopicConfiguration(
        progress_topic(topic),
        1,
        settings.replication_factor,
        # Small segments, compacted early: a start reads them all.
        {
            "cleanup.policy": "compact",
            "segment.bytes": str(16 * 1024 * 1024),
            "segment.ms": str(6 * 3_600_000),
            "min.cleanable.dirty.ratio": "0.2",
        },
        keep_existing=True,
    )


def _open_lane(
    channel: str, registry: SchemaRegistry, settings: RawProducerSettings, client_id: str
) -> Lane:
    topic = channel_topic(channel)
    schemas = LaneSchemas(
        registry.register_value(topic, RAW_TRADE),
        registry.register_value(progress_topic(topic), SOURCE_PROGRESS),
        registry.register_value(gaps_topic(topic), TRADE_GAP),
    )
    values = read_compacted(settings.kafka, progress_topic(topic), client_id).values()
    decoder = RecordDecoder(registry.schema_by_id)
    ledger = restore_ledger(values, decoder)
    if ledger.channel is not None:
        _log.info(
            "going on",
            topic=topic,
            instruments=len(ledger.instruments),
            holes=sum(1 for _ in ledger.holes()),
            resume_at=ledger.channel.resume_at,
        )
    overlap_ms = round(settings.history.overlap_s * 1000)
    return Lane(channel, schemas, ledger, restore_periods(values, decoder), overlap_ms)
