"""The consumer loop against a consumer of our own that does what it is told."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import ContractError, DeliveryError, UnavailableError
from kstream_agg.core.metrics import CONSUMER_LAG_RECORDS, RECORDS_CONSUMED, Metrics
from kstream_agg.pipeline.batches import split_poll
from kstream_agg.pipeline.committers import AtLeastOnce
from kstream_agg.pipeline.loop import ConsumerLoop, LoopSettings
from kstream_agg.pipeline.processor import BusyError, CommitPoint, Partition
from kstream_agg.pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

TOPIC = "trades"
END = 1_000


def record(partition: int, offset: int) -> Message:
    return Message(topic=TOPIC, partition=partition, offset=offset, value=b"v", key=b"k")


def event(code: int, partition: int = 0, offset: int = 0) -> Message:
    return Message(topic=TOPIC, partition=partition, offset=offset, error=KafkaError(code))


def end(partition: int, offset: int) -> Message:
    return event(KafkaError._PARTITION_EOF, partition, offset)


class ScriptedConsumer:
    """Each `consume` does the next step of a script: returns messages, or calls it."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.script: list[list[Message] | Callable[[], list[Message]]] = []
        self.stored: dict[int, tuple[int, str]] = {}
        self.stop = threading.Event()
        self.commit_error: KafkaException | None = None

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        self.log.append(("subscribe", tuple(topics)))
        self.callbacks = callbacks

    def consume(self, count: int, timeout: float) -> list[Message]:
        del count, timeout
        step = self.script.pop(0)
        if not self.script:
            self.stop.set()
        return step() if callable(step) else step

    def assign(self, *partitions: int) -> list[Message]:
        self.callbacks["on_assign"](self, [TopicPartition(TOPIC, p) for p in partitions])
        return []

    def revoke(self, *partitions: int) -> list[Message]:
        self.callbacks["on_revoke"](self, [TopicPartition(TOPIC, p) for p in partitions])
        return []

    def lose(self, *partitions: int) -> list[Message]:
        self.callbacks["on_lost"](self, [TopicPartition(TOPIC, p) for p in partitions])
        return []

    def committed(self, items: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        del timeout
        return [
            TopicPartition(TOPIC, item.partition, *self.stored.get(item.partition, (-1001, "")))
            for item in items
        ]

    def get_watermark_offsets(self, *_args: object, **_options: object) -> tuple[int, int]:
        return 0, END

    def incremental_assign(self, items: list[TopicPartition]) -> None:
        self.log.append(("assigned", [(item.partition, item.offset) for item in items]))

    def incremental_unassign(self, items: list[TopicPartition]) -> None:
        self.log.append(("unassigned", [item.partition for item in items]))

    def pause(self, items: list[TopicPartition]) -> None:
        self.log.append(("pause", [item.partition for item in items]))

    def resume(self, items: list[TopicPartition]) -> None:
        self.log.append(("resume", [item.partition for item in items]))

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        self.log.append(("commit", [(o.partition, o.offset, o.metadata) for o in offsets]))
        if self.commit_error is not None:
            raise self.commit_error
        return offsets

    def close(self) -> None:
        self.log.append("close")


class RecordingProcessor:
    """Notes what it is given; its commit point is the offset behind the last record."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.positions: dict[Partition, int] = {}
        self.unavailable = 0
        self.busy = Counter[int]()
        self.ticks = 0

    def assign(self, partition: Partition, committed: CommitPoint | None, end: int) -> int | None:
        assert end == END
        self.positions[partition] = committed.offset if committed else 0
        return committed.offset if committed else None

    def take_over(self, partitions: Sequence[Partition]) -> None:
        """Nothing has to be taken over."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Nobody else is there."""

    def revoke(self, partition: Partition) -> None:
        self.log.append(("forgotten", partition.number))
        self.positions.pop(partition)

    def process(self, partition: Partition, messages: Sequence[Message]) -> None:
        if self.busy[partition.number]:
            self.busy[partition.number] -= 1
            raise BusyError("the queue is full")
        if self.unavailable:
            self.unavailable -= 1
            raise UnavailableError("the registry does not answer")
        offsets = [message.offset() or 0 for message in messages]
        self.log.append(("process", partition.number, offsets))
        self.positions[partition] = offsets[-1] + 1

    def stand_at_end(self, partition: Partition, position: int, for_s: float) -> None:
        self.log.append(("at end", partition.number, position, for_s))

    def tick(self) -> None:
        self.ticks += 1

    def drain(self, partitions: Collection[Partition], within_s: float) -> None:
        assert within_s > 0
        self.log.append(("drain", [partition.number for partition in partitions]))

    def prepare_commit(
        self, partitions: Collection[Partition], *, giving_up: bool
    ) -> dict[Partition, CommitPoint]:
        del giving_up
        return {
            key: CommitPoint(position, "note")
            for key, position in self.positions.items()
            if key in partitions
        }


class RecordingOutlet:
    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.failure: DeliveryError | None = None

    def poll(self) -> int:
        return 0

    def flush(self, timeout_s: float = 60.0) -> None:
        del timeout_s
        self.log.append("flush")
        if self.failure is not None:
            raise self.failure


class Bench:
    def __init__(self, commit_interval_s: float = 100.0, take_attempts: int = 1) -> None:
        self.log: list[Any] = []
        self.clock = ManualClock()
        self.consumer = ScriptedConsumer(self.log)
        self.processor = RecordingProcessor(self.log)
        self.outlet = RecordingOutlet(self.log)
        self.metrics = Metrics(CollectorRegistry())
        self.progress = Progress(self.clock, stuck_after_s=60.0)
        self.loop = ConsumerLoop(
            consumer=self.consumer,  # type: ignore[arg-type]  # does what of it is used
            topics=[TOPIC],
            processor=self.processor,
            committer=AtLeastOnce(self.outlet),
            settings=LoopSettings(commit_interval_s=commit_interval_s, take_attempts=take_attempts),
            clock=self.clock,
            metrics=self.metrics,
            progress=self.progress,
        )

    def run(self, *script: list[Message] | Callable[[], list[Message]]) -> list[Any]:
        self.consumer.script = list(script)
        self.loop.run(self.consumer.stop)
        return self.log

    def assign(self, *partitions: int) -> Callable[[], list[Message]]:
        return lambda: self.consumer.assign(*partitions)

    def after(self, seconds: float, *messages: Message) -> Callable[[], list[Message]]:
        def step() -> list[Message]:
            self.clock.advance(seconds)
            return list(messages)

        return step


def test_one_poll_is_sorted_by_partition_and_offset() -> None:
    polled = [record(0, 1), record(1, 7), end(1, 8), record(0, 2), record(1, 8), end(0, 3)]
    batches, ends = split_poll(polled)
    assert {key.number: [m.offset() for m in found] for key, found in batches.items()} == {
        0: [1, 2],
        1: [7, 8],
    }
    assert ends == {Partition(TOPIC, 1): 8, Partition(TOPIC, 0): 3}


def test_an_error_the_consumer_cannot_get_over_ends_the_reading() -> None:
    with pytest.raises(ContractError):
        split_poll([event(KafkaError.TOPIC_AUTHORIZATION_FAILED)])
    assert split_poll([event(KafkaError._TRANSPORT)]) == ({}, {})


def test_offsets_are_committed_only_behind_delivered_results() -> None:
    bench = Bench()
    log = bench.run(bench.assign(0), [record(0, 0), record(0, 1)])
    assert log == [
        ("subscribe", (TOPIC,)),
        ("assigned", [(0, -2)]),
        ("process", 0, [0, 1]),
        ("drain", [0]),
        "flush",
        ("commit", [(0, 2, "note")]),
        "close",
    ]


def test_nothing_is_committed_when_results_are_not_delivered() -> None:
    bench = Bench()
    bench.outlet.failure = DeliveryError("not delivered")
    with pytest.raises(DeliveryError):
        bench.run(bench.assign(0), [record(0, 0)])
    assert bench.log[-2:] == ["flush", "close"]


def test_it_commits_by_time_and_only_what_has_changed() -> None:
    bench = Bench(commit_interval_s=10.0)
    log = bench.run(
        bench.assign(0, 1),
        bench.after(10, record(0, 0)),
        bench.after(10),
        bench.after(10, record(1, 5)),
        bench.after(1),
    )
    commits = [entry[1] for entry in log if entry[0] == "commit"]
    assert commits == [[(0, 1, "note"), (1, 0, "note")], [(1, 6, "note")]]


def test_a_commit_that_fails_is_tried_again() -> None:
    bench = Bench(commit_interval_s=10.0)
    bench.consumer.commit_error = KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
    log = bench.run(bench.assign(0), bench.after(10, record(0, 0)), bench.after(10))
    assert [entry for entry in log if entry[0] == "commit"] == [("commit", [(0, 1, "note")])] * 3


def test_it_resumes_where_the_processor_says() -> None:
    bench = Bench()
    bench.consumer.stored[1] = (40, "note")
    log = bench.run(bench.assign(0, 1), [])
    assert ("assigned", [(0, -2), (1, 40)]) in log


def test_revoked_partitions_are_committed_before_they_go_and_lost_ones_are_not() -> None:
    bench = Bench()
    log = bench.run(
        bench.assign(0, 1),
        [record(0, 0), record(1, 0)],
        lambda: bench.consumer.revoke(0),
        lambda: bench.consumer.lose(1),
        [],
    )
    assert log[4:] == [
        ("drain", [0]),
        "flush",
        ("commit", [(1, 1, "note"), (0, 1, "note")]),
        ("forgotten", 0),
        ("unassigned", [0]),
        ("forgotten", 1),
        ("unassigned", [1]),
        ("drain", []),
        "close",
    ]


def test_a_batch_is_kept_and_reading_paused_while_something_does_not_answer() -> None:
    bench = Bench()
    bench.processor.unavailable = 2
    log = bench.run(
        bench.assign(0, 1),
        [record(0, 0), record(1, 0)],
        bench.after(0.5, record(0, 1)),
        bench.after(0.6),
        bench.after(1.0),
    )
    assert log[2:8] == [
        ("pause", [0, 1]),
        ("process", 0, [0]),
        ("process", 1, [0]),
        ("process", 0, [1]),
        ("resume", [0, 1]),
        ("drain", [0, 1]),
    ]


def test_a_partition_that_is_busy_gets_its_batch_again_and_the_others_go_on() -> None:
    bench = Bench()
    bench.processor.busy[0] = 2
    log = bench.run(bench.assign(0, 1), [record(0, 0), record(1, 0)], [record(1, 1)], [])
    assert log[2:8] == [
        ("process", 1, [0]),
        ("pause", [0]),
        ("process", 1, [1]),
        ("process", 0, [0]),
        ("resume", [0]),
        ("drain", [0, 1]),
    ]
    assert bench.processor.ticks == 4


def test_what_waits_for_a_partition_that_goes_is_dropped() -> None:
    bench = Bench()
    bench.processor.unavailable = 1
    log = bench.run(
        bench.assign(0, 1),
        [record(0, 0), record(1, 0)],
        lambda: bench.consumer.revoke(0),
        bench.after(1.0),
    )
    assert [entry for entry in log if entry[0] == "process"] == [("process", 1, [0])]


def test_standing_at_the_end_is_told_until_a_record_comes() -> None:
    bench = Bench()
    log = bench.run(
        bench.assign(0),
        [record(0, 0), end(0, 3)],
        bench.after(4.0),
        bench.after(1.0, record(0, 3)),
        bench.after(9.0),
    )
    assert [entry for entry in log if entry[0] == "at end"] == [
        ("at end", 0, 3, 0.0),
        ("at end", 0, 3, 4.0),
    ]


def test_an_end_that_records_of_the_same_poll_have_passed_is_none() -> None:
    bench = Bench()
    log = bench.run(bench.assign(0), [record(0, 0), end(0, 1), record(0, 1)])
    assert not [entry for entry in log if entry[0] == "at end"]


def test_records_and_lag_are_counted() -> None:
    bench = Bench()
    bench.run(bench.assign(0), bench.after(2.0, record(0, 8), record(0, 9)))
    [consumed] = bench.metrics.counter(RECORDS_CONSUMED).collect()
    assert consumed.samples[0].value == 2
    [lag] = bench.metrics.gauge(CONSUMER_LAG_RECORDS).collect()
    assert lag.samples[0].value == END - 10
    assert bench.progress.lag == END - 10


def test_lag_is_seen_while_the_first_batch_cannot_be_processed() -> None:
    bench = Bench()
    bench.processor.unavailable = 100
    bench.run(bench.assign(0), bench.after(2.0, record(0, 8)), bench.after(2.0))
    assert bench.progress.lag == END


def test_a_failure_while_partitions_come_ends_the_run_with_our_error() -> None:
    bench = Bench()

    def refuse(*_args: object, **_options: object) -> list[TopicPartition]:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    bench.consumer.committed = refuse  # type: ignore[method-assign]  # the broker is away
    with pytest.raises(UnavailableError, match="taking partitions"):
        bench.run(bench.assign(0), [])
    assert bench.log[-1] == "close"


def test_partitions_that_cannot_be_taken_stand_still_while_the_member_goes_on_polling() -> None:
    bench = Bench(take_attempts=4)
    answer, refusals = bench.consumer.committed, 2

    def committed(items: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return answer(items, timeout)

    bench.consumer.committed = committed  # type: ignore[method-assign]  # the broker has gone for a moment
    steps = [bench.assign(0, 1), bench.after(0.5), bench.after(0.6), lambda: bench.consumer.lose(1)]
    log = bench.run(*steps, bench.after(1.1), [record(0, 0)])
    taking = [item for item in log if item[0] in {"assigned", "pause", "unassigned"}]
    assert taking == [
        ("assigned", [(0, OFFSET_END), (1, OFFSET_END)]),
        ("pause", [0, 1]),
        ("unassigned", [0, 1]),
        ("assigned", [(0, OFFSET_END), (1, OFFSET_END)]),
        ("pause", [0, 1]),
        # What is lost meanwhile is not taken, and the rest begins anew.
        ("unassigned", [1]),
        ("unassigned", [0]),
        ("assigned", [(0, OFFSET_BEGINNING)]),
    ]
    assert ("process", 0, [0]) in log


def test_a_batch_in_work_for_too_long_is_unhealthy() -> None:
    clock = ManualClock()
    progress = Progress(clock, stuck_after_s=60.0)
    progress.batch_begins()
    clock.advance(60)
    assert progress.check() is None
    clock.advance(1)
    assert progress.check() == "a batch has been in work for 61 s"
    progress.batch_ends(done=True)
    assert progress.check() is None


def test_records_that_wait_without_progress_are_unhealthy_and_an_empty_topic_is_not() -> None:
    clock = ManualClock()
    progress = Progress(clock, stuck_after_s=60.0)
    clock.advance(1_000)
    assert progress.check() is None
    progress.set_lag(5)
    assert progress.check() is None
    clock.advance(61)
    assert progress.check() == "5 records wait and none was read for 61 s"
    progress.set_lag(5)
    progress.batch_begins()
    progress.batch_ends(done=False)
    assert progress.check() is not None
    progress.batch_begins()
    progress.batch_ends(done=True)
    assert progress.check() is None
