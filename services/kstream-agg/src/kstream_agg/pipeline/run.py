"""Runs a pipeline: the composition root of programs that are written with this package."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

from confluent_kafka import Consumer, Producer

from kstream_agg.core.errors import KStreamError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import load_settings
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.group_transactions import GroupTransactionWriter
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.pipeline.committers import AtLeastOnce, ExactlyOnce
from kstream_agg.pipeline.engine import PipelineProcessor
from kstream_agg.pipeline.loop import ConsumerLoop
from kstream_agg.pipeline.memory import collect_less_often
from kstream_agg.pipeline.progress import Progress
from kstream_agg.pipeline.settings import PipelineSettings
from kstream_agg.pipeline.workers import announce_worker, is_worker, run_workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.service import ServiceContext
    from kstream_agg.pipeline.definition import Pipeline
    from kstream_agg.pipeline.engine import RecordOutlet

__all__ = ["Clients", "Member", "run_pipeline", "serve_pipeline"]

_log = get_logger(__name__)

# Many commit intervals, and little for whoever waits behind a worker that was killed.
_TRANSACTION_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Clients:
    """Makes the clients of a cluster; the test kit puts its own here."""

    consumer: Callable[..., Consumer] = Consumer
    producer: Callable[[dict[str, Any]], Producer] = Producer


class Member:
    """A pipeline wired to a cluster, as one member of its group; `loop` runs it.

    A context manager, which ends the steps' threads and, without an error, delivers what is queued.

    Args:
        pipeline: What to run.
        settings: How.
        clock: Monotonic time is used.
        metrics: Counts.
        clients: The cluster's.
        patience_s: How long a batch waits for room before reading is paused.
    """

    def __init__(  # noqa: PLR0913 - a composition root's, by name
        self,
        pipeline: Pipeline[Any],
        settings: PipelineSettings,
        *,
        clock: Clock,
        metrics: Metrics,
        clients: Clients | None = None,
        patience_s: float = 0.5,
    ) -> None:
        clients = clients or Clients()
        options, kafka = settings.pipeline, settings.kafka
        self.consumer = make_consumer(kafka, pipeline.group, pipeline.group, clients.consumer)
        self._writer: RecordWriter | None = None
        committer: AtLeastOnce | ExactlyOnce
        outlet: RecordOutlet
        if options.guarantee == "at_least_once":
            outlet = self._writer = RecordWriter(kafka, metrics, pipeline.group, clients.producer)
            committer = AtLeastOnce(self._writer)
        else:
            make_writer = _transactions(settings, pipeline.group, metrics, clients)
            outlet = committer = ExactlyOnce(make_writer, metrics)
        limits = replace(options.limits, patience_s=patience_s)
        self.processor = PipelineProcessor(pipeline, outlet, limits, clock, metrics)
        self.progress = Progress(clock, options.stuck_after_s)
        self.loop = ConsumerLoop(
            consumer=self.consumer,
            topics=pipeline.topics,
            processor=self.processor,
            committer=committer,
            settings=options.loop,
            clock=clock,
            metrics=metrics,
            progress=self.progress,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.processor.close()
        if self._writer is not None:
            self._writer.__exit__(exc_type, exc, traceback)


def _transactions(
    settings: PipelineSettings, group: str, metrics: Metrics, clients: Clients
) -> Callable[[], GroupTransactionWriter]:
    # One of its own for each process: workers of a group must not fence each other by mistake.
    # What one that was killed has left open, brokers abort after the time-out.
    owner = f"{group}-{uuid4().hex[:12]}"
    timeouts: dict[str, str | int | float | bool] = {
        "transaction.timeout.ms": _TRANSACTION_MS,
        "delivery.timeout.ms": _TRANSACTION_MS,
    }
    properties = timeouts | settings.kafka.properties
    kafka = settings.kafka.model_copy(update={"properties": properties})

    def make() -> GroupTransactionWriter:
        return GroupTransactionWriter(kafka, metrics, group, owner, make_producer=clients.producer)

    return make


def run_pipeline(
    pipeline: Pipeline[Any], settings: PipelineSettings | None = None, *, name: str | None = None
) -> None:
    """Run a pipeline until SIGTERM or SIGINT; call it from a program's main thread.

    It finishes or drops open batches as their steps say, commits and returns. What it cannot go
    on with ends the process with one sentence on standard error and an exit code, as
    `kstream-agg`'s commands do. With `workers` the program is started again for each of them;
    what stands before this call therefore runs in each.

    Args:
        pipeline: What to run.
        settings: How; by default `config/<name>/default.toml` and `KSTREAM__…` variables.
        name: In logs, traces and the group's member list; by default the consumer group.
    """
    name = name or pipeline.group
    try:
        settings = settings or load_settings(PipelineSettings, name)
        if settings.pipeline.workers > 1 and not is_worker():
            run_workers(settings.pipeline.workers, settings, name, settings.pipeline.stop_within_s)
            return
        with run_service(name, settings) as context:
            announce_worker(context)
            collect_less_often()
            serve_pipeline(pipeline, settings, context)
    except KStreamError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.remedy:
            sys.stderr.write(f"remedy: {error.remedy}\n")
        raise SystemExit(error.exit_code) from error


def serve_pipeline(
    pipeline: Pipeline[Any], settings: PipelineSettings, ctx: ServiceContext
) -> None:
    """Run a pipeline inside a service, until it is asked to stop.

    Raises:
        ErrorLimitError: More records failed than allowed.
        DeliveryError: Kafka did not take a record.
        FencedError: Another worker has taken this one's place.
        KStreamError: The consumer or a step cannot go on.
    """
    if not _prepare(pipeline, settings, ctx):
        return
    with Member(pipeline, settings, clock=ctx.clock, metrics=ctx.metrics) as member:
        ctx.health.add_check("consumer", member.progress.check)
        ctx.health.add_check("steps", member.processor.check)
        ctx.health.set_ready()
        _log.info(
            "running",
            topics=pipeline.topics,
            group=pipeline.group,
            guarantee=settings.pipeline.guarantee,
        )
        member.loop.run(ctx.stop)


def _prepare(pipeline: Pipeline[Any], settings: PipelineSettings, ctx: ServiceContext) -> bool:
    """Wait for Kafka, and create the dead-letter topics; False when asked to stop before."""
    cluster = KafkaCluster(settings.kafka, ctx.name)
    ctx.health.set_not_ready(f"waiting for Kafka at {settings.kafka.bootstrap_servers}")
    wanted = [
        topic_configuration(topic, settings.topic, partitions=1)
        for topic in pipeline.dead_letter_topics
    ]
    while cluster.wait_for_brokers(ctx.stop):
        try:
            missing = set(pipeline.topics) - cluster.topics().keys()
            cluster.create_topics(wanted)
        except UnavailableError as error:
            _log.warning("trying again", reason=str(error))
            ctx.stop.wait(1.0)
        else:
            if missing:
                _log.warning("these topics do not exist yet", topics=sorted(missing))
            return True
    return False
