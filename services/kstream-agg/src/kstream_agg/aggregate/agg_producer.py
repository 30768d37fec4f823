"""The agg-producer: the aggregator wired to Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from uuid import uuid4

from kstream_agg.aggregate.changelog import Changelog
from kstream_agg.aggregate.intake import Instruments, TradeReader
from kstream_agg.aggregate.keeping import StateKeeper
from kstream_agg.aggregate.outputs import TopicOutputs
from kstream_agg.aggregate.processor import AggregatingProcessor
from kstream_agg.core.errors import TopicMismatchError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import (
    average_topic,
    changelog_topic,
    dead_letter_topic,
    late_topic,
)
from kstream_agg.core.schemas import AVERAGE
from kstream_agg.core.service import until_available
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration, topic_configuration
from kstream_agg.kafka.group_transactions import GroupTransactionWriter
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.pipeline.committers import AtLeastOnce, ExactlyOnce
from kstream_agg.pipeline.loop import ConsumerLoop, LoopSettings
from kstream_agg.pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kstream_agg.aggregate.changelog import RecordSink
    from kstream_agg.aggregate.settings import AggProducerSettings
    from kstream_agg.core.service import ServiceContext
    from kstream_agg.kafka.cluster import TopicDescription
    from kstream_agg.pipeline.committers import Committer

__all__ = ["average_topics", "changelogs_of", "run_agg_producer", "topics_of"]

_log = get_logger(__name__)

_AverageTopics = dict[str, list[tuple[str, int]]]
"""For each raw topic the topics of its results, by family of windows, with their schema's id."""

# What a registry needs at its start, generously. A record whose schema really is missing holds its
# partition up for so long, once for each schema.
_DOUBT_S: Final = 15.0

# Never deleted by age. Compacted often: all of it is read before a partition's work goes on.
_CHANGELOG_CONFIG: Final = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": str(3_600_000),
    "segment.bytes": str(64 << 20),
}


def run_agg_producer(settings: AggProducerSettings, ctx: ServiceContext) -> None:
    """Aggregate the raw topics of the settings' channels until asked to stop.

    Raises:
        SchemaIncompatibleError: The registry refuses the Average schema.
        TopicMismatchError: A topic has partitions that the settings do not allow.
        DeliveryError: Kafka did not take a record.
        FencedError: Another worker has taken this one's place.
        KStreamError: The consumer cannot go on.
    """
    with SchemaRegistry(settings.registry, doubt_s=_DOUBT_S) as registry:
        averages = _prepare(settings, ctx, registry)
        if averages is None:
            return
        if settings.guarantee == "at_least_once":
            with RecordWriter(settings.kafka, ctx.metrics, ctx.name) as writer:
                _aggregate(settings, ctx, registry, averages, _Guarantee.at_least_once(writer))
        else:
            guarantee = _Guarantee.exactly_once(settings, ctx)
            _aggregate(settings, ctx, registry, averages, guarantee)


@dataclass(frozen=True, slots=True)
class _Guarantee:
    """What the guarantee decides: where records go, and how they become final."""

    sink: RecordSink
    committer: Committer
    owner: str | None
    before_write: Callable[[], None]

    @classmethod
    def at_least_once(cls, writer: RecordWriter) -> Self:
        return cls(writer, AtLeastOnce(writer), None, writer.flush)

    @classmethod
    def exactly_once(cls, settings: AggProducerSettings, ctx: ServiceContext) -> Self:
        # One of its own for each process: workers of a group must not fence each other by
        # mistake. Whom they succeed they find in the changelog.
        owner = f"{settings.group_id}-{uuid4().hex[:12]}"

        def make_writer() -> GroupTransactionWriter:
            return GroupTransactionWriter(settings.kafka, ctx.metrics, ctx.name, owner)

        committer = ExactlyOnce(make_writer, ctx.metrics)
        return cls(committer, committer, owner, committer.flush)


def _aggregate(
    settings: AggProducerSettings,
    ctx: ServiceContext,
    registry: SchemaRegistry,
    averages: _AverageTopics,
    guarantee: _Guarantee,
) -> None:
    progress = Progress(ctx.clock, settings.consume.stuck_after_s)
    loop = ConsumerLoop(
        consumer=make_consumer(settings.kafka, settings.group_id, ctx.name),
        topics=settings.raw_topics,
        processor=_make_processor(settings, ctx, registry, averages, guarantee),
        committer=guarantee.committer,
        settings=LoopSettings(settings.consume.batch_records, settings.consume.commit_interval_s),
        clock=ctx.clock,
        metrics=ctx.metrics,
        progress=progress,
    )
    ctx.health.add_check("consumer", progress.check)
    ctx.health.set_ready()
    _log.info(
        "aggregating",
        topics=settings.raw_topics,
        windows=[family.name for family in settings.window.families],
        guarantee=settings.guarantee,
    )
    loop.run(ctx.stop)


def _make_processor(
    settings: AggProducerSettings,
    ctx: ServiceContext,
    registry: SchemaRegistry,
    averages: _AverageTopics,
    guarantee: _Guarantee,
) -> AggregatingProcessor:
    instruments = Instruments()
    rules = settings.rules
    keeper = StateKeeper(
        log=Changelog(settings.kafka, settings.group_id, ctx.name, guarantee.sink),
        rules=rules,
        instruments=instruments,
        owner=guarantee.owner,
        before_write=guarantee.before_write,
        metrics=ctx.metrics,
    )
    return AggregatingProcessor(
        reader=TradeReader(registry.schema_by_id, instruments, settings.groups),
        outputs={
            topic: TopicOutputs(topic, families, guarantee.sink, ctx.metrics)
            for topic, families in averages.items()
        },
        keeper=keeper,
        idle_timeout_s=settings.window.idle_timeout,
        clock=ctx.clock,
        metrics=ctx.metrics,
        tracer=ctx.telemetry.tracer,
        follow_traces=settings.telemetry.exporter != "none",
    )


def topics_of(settings: AggProducerSettings) -> list[TopicConfiguration]:
    """The topics the agg-producer reads and writes, but its changelogs."""
    found: list[TopicConfiguration] = []
    for topic in settings.raw_topics:
        found.append(topic_configuration(topic, settings.topic))
        found += [
            topic_configuration(name, settings.topic, compact=True)
            for name in average_topics(topic, settings)
        ]
        found += [
            topic_configuration(name, settings.topic, partitions=1)
            for name in (late_topic(topic), dead_letter_topic(topic))
        ]
    return found


def average_topics(raw_topic: str, settings: AggProducerSettings) -> list[str]:
    """The topics of the results of one raw topic, by family of windows."""
    return [
        average_topic(raw_topic, family.period_ms // 1000, family.advance_ms // 1000)
        for family in settings.window.families
    ]


def changelogs_of(
    settings: AggProducerSettings, topics: Mapping[str, TopicDescription]
) -> list[TopicConfiguration]:
    """The changelogs, with as many partitions as their raw topics have.

    Args:
        settings: The service's.
        topics: The topics that exist.

    Raises:
        TopicMismatchError: A changelog or, where trades are grouped by channel, a raw topic has
            other partitions.
    """
    found = []
    for raw_topic in settings.raw_topics:
        partitions = topics[raw_topic].partitions
        if settings.group_by == "channel" and partitions > 1:
            raise TopicMismatchError(
                f"group_by = channel needs a topic of one partition, '{raw_topic}' has "
                f"{partitions}: no partition would hold all of the channel's trades",
                remedy="set topic.partitions = 1 before the topic is made, or group by instrument",
            )
        name = changelog_topic(settings.group_id, raw_topic)
        known = topics.get(name)
        if known is not None and known.partitions != partitions:
            raise TopicMismatchError(
                f"'{name}' has {known.partitions} partitions, '{raw_topic}' {partitions}",
                remedy="choose another group_id: the state of partitions that were added later "
                "cannot be made from their middle",
            )
        found.append(
            TopicConfiguration(
                name,
                partitions,
                settings.topic.replication_factor,
                _CHANGELOG_CONFIG,
                keep_existing=True,
            )
        )
    return found


def _prepare(
    settings: AggProducerSettings, ctx: ServiceContext, registry: SchemaRegistry
) -> _AverageTopics | None:
    """Topics and schema ids by raw topic; None when asked to stop before they are there."""
    cluster = KafkaCluster(settings.kafka, ctx.name)
    ctx.health.set_not_ready(f"waiting for Kafka at {settings.kafka.bootstrap_servers}")
    if not cluster.wait_for_brokers(ctx.stop):
        return None

    def create_topics() -> None:
        cluster.create_topics(topics_of(settings))
        cluster.create_topics(changelogs_of(settings, cluster.topics()))

    if not until_available(ctx.stop, create_topics):
        return None
    ctx.health.set_not_ready(f"waiting for the schema registry at {settings.registry.url}")
    if not registry.wait(ctx.stop):
        return None
    averages: _AverageTopics = {}

    def register() -> None:
        for topic in settings.raw_topics:
            names = average_topics(topic, settings)
            averages[topic] = [(name, registry.register_value(name, AVERAGE)) for name in names]

    return averages if until_available(ctx.stop, register) else None
