"""The batch-sink: topics to ClickHouse in batches, as a pipeline; settings and composition root.

polled messages ─► map: columns ─► reduce: batches ─► reduce: written ─► commit
                        └── bad records ─────────────────────┴──► {topic}-dlq
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import table_name, value_subject
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import SettingsGroup
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.pipeline.definition import Pipeline
from kstream_agg.pipeline.failures import DeadLetterTopic, StopAfter
from kstream_agg.pipeline.memory import collect_less_often
from kstream_agg.pipeline.run import serve_pipeline
from kstream_agg.pipeline.settings import PipelineSettings
from kstream_agg.pipeline.steps import Shutdown
from kstream_agg.pipeline.workers import announce_worker, is_worker, run_workers
from kstream_agg.sinks.batch_sink_blocks import AvroBlocks, RawBlocks, shape_of
from kstream_agg.sinks.batch_sink_writer import BatchLimits, BlockGatherer, BlockWriter
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.sinks.clickhouse_tables import Inserts
from kstream_agg.sinks.settings import comma_texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.sinks.batch_sink_blocks import Block, BlockMaker
    from kstream_agg.sinks.clickhouse_tables import Shape

__all__ = ["SERVICE", "STAGES", "BatchSinkSettings", "SinkSettings", "run_batch_sink"]

_log = get_logger(__name__)

SERVICE: Final = "batch-sink"
STAGES: Final = frozenset({"map to_rows", "reduce 2 clickhouse"})
"""The pipeline's steps, as its dead letters name them."""

# A registry that has just started does not know yet what it knows.
_REGISTRY_DOUBT_S: Final = 30.0
# Below so many records a share says nothing.
_RATIO_AT_LEAST: Final = 1_000


Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(comma_texts)]


class SinkSettings(SettingsGroup):
    """`[sink]`: what is written where, in which batches."""

    group_id: str = SERVICE
    """Consumer group of the sink."""
    topics: Texts = ()
    """What to read; by default the raw topics of the channels."""
    values: Literal["avro", "raw"] = "avro"
    """avro: a column for each field; raw: the bytes of key and value, whatever they are."""
    table: str | None = None
    """The table of a single topic; by default named as the topic, with underscores."""
    create: bool = True
    """Make a missing table, and columns that a newer schema has; false: only write."""
    batch_count: int = Field(default=10_000, ge=1)
    """A batch is closed with the poll that reaches so many records."""
    batch_seconds: float = Field(default=1.0, gt=0)
    """Or so long after its first record."""
    batch_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Or with the poll that reaches so many bytes of keys and values."""
    on_shutdown: Literal["flush", "drop"] = "flush"
    """What becomes of an open batch at the end, and when partitions go; dropped: read again."""
    retry_max_s: float = Field(default=30.0, ge=1)
    """Longest wait between attempts; the first is 1 s."""
    stop_ratio: float = Field(default=0.5, gt=0, lt=1)
    """With more of all records refused than this share, the sink ends: that is no bad record."""
    data_codes: Annotated[tuple[int, ...], NoDecode, BeforeValidator(comma_texts)] = ()
    """Further numbers of ClickHouse's errors that mean a bad row; others pause the sink."""


class BatchSinkSettings(PipelineSettings):
    """Settings of the batch-sink."""

    clickhouse: ClickHouseSettings = ClickHouseSettings()
    sink: SinkSettings = SinkSettings()

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        if self.sink.table is not None and len(self.topics) != 1:
            raise ValueError(f"sink.table names one table, and there are {len(self.topics)} topics")
        return self

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics it reads."""
        return self.sink.topics or self.raw_topics

    def table(self, topic: str) -> str:
        """The table of a topic."""
        return self.sink.table or table_name(topic)

    @property
    def batch_limits(self) -> BatchLimits:
        """For the writer."""
        sink = self.sink
        on_shutdown = Shutdown(sink.on_shutdown)
        return BatchLimits(
            sink.batch_count,
            sink.batch_seconds,
            sink.batch_bytes,
            on_shutdown,
            sink.retry_max_s,
        )


def make_pipeline(
    settings: BatchSinkSettings, blocks: BlockMaker, gatherer: BlockGatherer, writer: BlockWriter
) -> Pipeline[None]:
    """The sink's steps."""
    to_rows: Callable[..., Block] = blocks.to_rows
    return (
        Pipeline(*settings.topics, group=settings.sink.group_id)
        .map_batch(to_rows, inline=True)
        .reduce(gatherer)
        .reduce(writer)
        .on_error(
            StopAfter(ratio=settings.sink.stop_ratio, at_least=_RATIO_AT_LEAST), DeadLetterTopic()
        )
    )


def run_batch_sink(settings: BatchSinkSettings) -> None:
    """Run the service until SIGTERM or SIGINT; call from the main thread.

    Raises:
        SettingsError: ClickHouse refuses the user.
        ContractError: A topic's schema has a field that no column is made for.
        ErrorLimitError: More records are refused than allowed.
        KStreamError: Kafka's clients cannot go on.
    """
    options = settings.pipeline
    if options.workers > 1 and not is_worker():
        run_workers(options.workers, settings, SERVICE, options.stop_within_s)
        return
    with run_service(SERVICE, settings) as ctx, ExitStack() as opened:
        announce_worker(ctx)
        collect_less_often()
        client = opened.enter_context(
            ClickHouse(settings.clickhouse, frozenset(settings.sink.data_codes))
        )
        _look(client)
        blocks: BlockMaker = RawBlocks()
        if settings.sink.values == "avro":
            registry = SchemaRegistry(settings.registry, doubt_s=_REGISTRY_DOUBT_S)
            blocks = AvroBlocks(opened.enter_context(registry).schema_by_id)
            _check_schemas(registry, settings.topics)
        steps = _make_steps(settings, client, ctx)
        serve_pipeline(make_pipeline(settings, blocks, *steps), settings, ctx)


def _make_steps(
    settings: BatchSinkSettings, client: ClickHouse, ctx: ServiceContext
) -> tuple[BlockGatherer, BlockWriter]:
    made: list[Inserts] = []
    making = threading.Lock()

    @cache
    def make(topic: str, shape: Shape) -> Inserts:
        new = Inserts(client, settings.table(topic), shape, create=settings.sink.create)
        made.append(new)
        return new

    def inserts(topic: str, shape: Shape) -> Inserts:
        # Both steps ask, each in its thread.
        with making:
            return make(topic, shape)

    def look_again() -> None:
        client.forget()
        for known in tuple(made):
            known.forget()

    limits = settings.batch_limits
    return (
        BlockGatherer(inserts, limits),
        BlockWriter(inserts, limits, ctx.clock, ctx.metrics, look_again),
    )


def _check_schemas(registry: SchemaRegistry, topics: tuple[str, ...]) -> None:
    """See that columns can be made for the topics' schemas, as far as they are known already.

    Raises:
        ContractError: For one of them they cannot.
    """
    for topic in topics:
        try:
            known = registry.latest(value_subject(topic))
        except UnavailableError as error:
            _log.warning("the registry is not there yet", reason=str(error))
            return
        if known is not None:
            shape_of(known[1])


def _look(client: ClickHouse) -> None:
    """Say which server it is; one that is away is waited for when there is something to write."""
    try:
        found = client.features()
    except UnavailableError as error:
        _log.warning("ClickHouse is not there yet", reason=str(error))
    else:
        _log.info("ClickHouse found", version=found.version, place=client.place)
