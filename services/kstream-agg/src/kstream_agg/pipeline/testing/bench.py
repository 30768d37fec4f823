"""A pipeline on the in-memory broker, with a clock that a test moves.

    with PipelineBench(make_pipeline, outputs=["sums"]) as bench:
        bench.send("trades", b"1.5", key=b"BTC")
        bench.advance(5)
        assert [record.value for record in bench.records("sums")] == [b"1.5"]

The very consumer loop, steps and writers run that run on Kafka; only its clients are replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.metrics import Metrics
from kstream_agg.pipeline.run import Clients, Member
from kstream_agg.pipeline.settings import EngineSettings, PipelineSettings
from kstream_agg.pipeline.testing.broker import MemoryBroker, StoredRecord
from kstream_agg.pipeline.testing.consumer import MemoryConsumer
from kstream_agg.pipeline.testing.producer import MemoryProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from confluent_kafka import Consumer, Producer

    from kstream_agg.pipeline.definition import Pipeline

__all__ = ["BenchWorker", "PipelineBench", "memory_clients"]

# Against steps that hang or never come to rest; nothing waits so long otherwise.
_REST_WITHIN_S: Final = 30.0
_MOST_ROUNDS: Final = 10_000


def memory_clients(broker: MemoryBroker, producers: list[MemoryProducer] | None = None) -> Clients:
    """Clients of an in-memory broker.

    Args:
        broker: Theirs.
        producers: Gets the producers that are made.
    """

    def consumer(config: dict[str, Any], **_options: object) -> Consumer:
        return cast("Consumer", MemoryConsumer(broker, config))

    def producer(config: dict[str, Any]) -> Producer:
        made = MemoryProducer(broker, config)
        if producers is not None:
            producers.append(made)
        return cast("Producer", made)

    return Clients(consumer, producer)


class BenchWorker:
    """One member of the pipeline's group.

    Args:
        member: The pipeline, wired.
        producers: Its producers.
        leave: Takes it off the bench.
    """

    def __init__(
        self,
        member: Member,
        producers: list[MemoryProducer],
        leave: Callable[[BenchWorker], None],
    ) -> None:
        self.member = member
        self._producers = producers
        self._leave = leave
        member.loop.begin()

    @property
    def consumer(self) -> MemoryConsumer:
        """Its consumer."""
        return cast("MemoryConsumer", self.member.consumer)

    def stop(self) -> None:
        """What SIGTERM does: flush or drop, commit, leave the group."""
        try:
            self.member.loop.finish()
        finally:
            self._end(self.member.loop.close)

    def kill(self) -> None:
        """What SIGKILL does: nothing is flushed or committed.

        The group notices at once, and an open transaction is aborted at once; a real broker
        waits for the session's and the transaction's time-out.
        """
        self._end(self._vanish)

    def _vanish(self) -> None:
        self.consumer.vanish()
        for producer in self._producers:
            producer.vanish()

    def _end(self, last: Callable[[], None]) -> None:
        self._leave(self)
        try:
            last()
        finally:
            self.member.processor.close()


class PipelineBench:
    """Runs a pipeline on an in-memory broker; a context manager, which kills what still runs.

    Args:
        make_pipeline: Makes the pipeline, once for each worker, as reducers hold state.
        outputs: Topics it writes, to be created; dead-letter topics are anyway.
        partitions: Of the topics it reads, which are created.
        settings: How it is run.
        workers: How many to begin with.
    """

    def __init__(
        self,
        make_pipeline: Callable[[], Pipeline[Any]],
        *,
        outputs: Sequence[str] = (),
        partitions: int = 1,
        settings: EngineSettings | None = None,
        workers: int = 1,
    ) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(self.clock)
        self.workers: list[BenchWorker] = []
        self._make_pipeline = make_pipeline
        self._settings = PipelineSettings(pipeline=settings or EngineSettings())
        pipeline = make_pipeline()
        self._group = pipeline.group
        for topic in pipeline.topics:
            self.broker.create_topic(topic, partitions)
        for topic in (*outputs, *pipeline.dead_letter_topics):
            self.broker.create_topic(topic)
        for _ in range(workers):
            self.add_worker()

    # --- what a test does ------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int = -1,
    ) -> None:
        """Write a record to a topic that exists."""
        MemoryProducer(self.broker, {}).produce(topic, value, key, partition, headers=list(headers))

    def run(self, most_rounds: int = _MOST_ROUNDS) -> None:
        """Let everybody work until nothing moves before time passes.

        Raises:
            KStreamError: What a worker ends with; it is off the bench then.
            AssertionError: Something still moves after so many rounds, or a step hangs.
        """
        for _ in range(most_rounds):
            before = self._moved()
            for worker in list(self.workers):
                self._step(worker)
            waiting = any(worker.member.processor.has_outputs for worker in self.workers)
            if self._moved() == before and not waiting:
                return
        raise AssertionError("the pipeline does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, at once, and run; before it, what is there already is worked off."""
        self.run()
        self.clock.advance(seconds)
        self.run()

    def add_worker(self) -> BenchWorker:
        """Add a member to the group; it takes part from the next `run` on."""
        producers: list[MemoryProducer] = []
        member = Member(
            self._make_pipeline(),
            self._settings,
            clock=self.clock,
            metrics=Metrics(CollectorRegistry()),
            clients=memory_clients(self.broker, producers),
            patience_s=0.0,
        )
        worker = BenchWorker(member, producers, self.workers.remove)
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        """Stop all workers, as SIGTERM does."""
        for worker in list(self.workers):
            worker.stop()

    # --- what it can look at ---------------------------------------------------------------

    def records(self, topic: str) -> list[StoredRecord]:
        """A topic's records that readers of committed ones see."""
        return self.broker.records(topic)

    def committed(self, topic: str) -> dict[int, int]:
        """Partition to the offset that the pipeline's group has committed."""
        stored = self.broker.committed(self._group)
        return {key.number: point.offset for key, point in stored.items() if key.topic == topic}

    # --- parts -----------------------------------------------------------------------------

    def _step(self, worker: BenchWorker) -> None:
        try:
            worker.member.loop.step()
        except BaseException:
            worker.kill()
            raise
        if not worker.member.processor.wait_idle(_REST_WITHIN_S):
            raise AssertionError(f"a step hangs: {worker.member.processor.check()}")

    def _moved(self) -> tuple[int, int]:
        return (
            self.broker.activity,
            sum(worker.member.processor.moved for worker in self.workers),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in list(self.workers):
            worker.kill()
