"""The agg-producer: the aggregator wired to Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.aggregate.intake import Instruments, TradeReader
from kstream_agg.aggregate.outputs import TopicOutputs
from kstream_agg.aggregate.processor import AggregatingProcessor
from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import average_topic, dead_letter_topic, late_topic
from kstream_agg.core.schemas import AVERAGE
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.pipeline.loop import ConsumerLoop, LoopSettings
from kstream_agg.pipeline.progress import Progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from kstream_agg.aggregate.settings import AggProducerSettings
    from kstream_agg.core.service import ServiceContext
    from kstream_agg.kafka.cluster import TopicConfiguration

__all__ = ["run_agg_producer", "topics_of"]

_log = get_logger(__name__)


def run_agg_producer(settings: AggProducerSettings, ctx: ServiceContext) -> None:
    """Aggregate the raw topics of the settings' channels until asked to stop.

    Raises:
        SchemaIncompatibleError: The registry refuses the Average schema.
        DeliveryError: Kafka did not take a record.
        KStreamError: The consumer cannot go on.
    """
    with SchemaRegistry(settings.registry) as registry:
        schema_ids = _prepare(settings, ctx, registry)
        if schema_ids is None:
            return
        progress = Progress(ctx.clock, settings.consume.stuck_after_s)
        with RecordWriter(settings.kafka, ctx.metrics, ctx.name) as writer:
            loop = ConsumerLoop(
                consumer=make_consumer(settings.kafka, settings.group_id, ctx.name),
                topics=settings.raw_topics,
                processor=_make_processor(settings, ctx, registry, writer, schema_ids),
                outlet=writer,
                settings=LoopSettings(
                    settings.consume.batch_records, settings.consume.commit_interval_s
                ),
                clock=ctx.clock,
                metrics=ctx.metrics,
                progress=progress,
            )
            ctx.health.add_check("consumer", progress.check)
            ctx.health.set_ready()
            _log.info("aggregating", topics=settings.raw_topics, period_s=settings.window.period)
            loop.run(ctx.stop)


def _make_processor(
    settings: AggProducerSettings,
    ctx: ServiceContext,
    registry: SchemaRegistry,
    writer: RecordWriter,
    schema_ids: dict[str, int],
) -> AggregatingProcessor:
    instruments = Instruments()
    period_s = settings.window.period
    return AggregatingProcessor(
        reader=TradeReader(registry.schema_by_id, instruments),
        instruments=instruments,
        outputs={
            topic: TopicOutputs(topic, period_s, schema_id, writer, ctx.metrics)
            for topic, schema_id in schema_ids.items()
        },
        rules=settings.rules,
        idle_timeout_s=settings.window.idle_timeout,
        clock=ctx.clock,
        metrics=ctx.metrics,
        tracer=ctx.telemetry.tracer,
        follow_traces=settings.telemetry.exporter != "none",
    )


def topics_of(settings: AggProducerSettings) -> list[TopicConfiguration]:
    """The topics the agg-producer reads and writes."""
    return [
        configuration
        for topic in settings.raw_topics
        for configuration in (
            topic_configuration(topic, settings.topic),
            topic_configuration(
                average_topic(topic, settings.window.period), settings.topic, compact=True
            ),
            topic_configuration(late_topic(topic), settings.topic, partitions=1),
            topic_configuration(dead_letter_topic(topic), settings.topic, partitions=1),
        )
    ]


def _prepare(
    settings: AggProducerSettings, ctx: ServiceContext, registry: SchemaRegistry
) -> dict[str, int] | None:
    """Topics and schema ids by raw topic; None when asked to stop before they are there."""
    cluster = KafkaCluster(settings.kafka, ctx.name)
    ctx.health.set_not_ready(f"waiting for Kafka at {settings.kafka.bootstrap_servers}")
    if not cluster.wait_for_brokers(ctx.stop):
        return None
    if not _until_available(ctx.stop, lambda: cluster.create_topics(topics_of(settings))):
        return None
    ctx.health.set_not_ready(f"waiting for the schema registry at {settings.registry.url}")
    if not registry.wait(ctx.stop):
        return None
    schema_ids: dict[str, int] = {}

    def register() -> None:
        for topic in settings.raw_topics:
            output = average_topic(topic, settings.window.period)
            schema_ids[topic] = registry.register_value(output, AVERAGE)

    return schema_ids if _until_available(ctx.stop, register) else None


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
