"""Commits that fail, generations that are stale, members that are fenced."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import CommitUncertainError, FencedError, KStreamError
from kstream_agg.core.metrics import COMMITS, Metrics
from kstream_agg.pipeline.committers import ExactlyOnce
from kstream_agg.pipeline.loop import ConsumerLoop, LoopSettings
from kstream_agg.pipeline.processor import CommitPoint, Partition
from kstream_agg.pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from confluent_kafka import Message

TOPIC = "trades"


class ScriptedWriter:
    """A transactional producer; `fails` are raised by its next commits, in turn."""

    def __init__(self, log: list[Any], fails: list[KStreamError | None]) -> None:
        self.log = log
        self.fails = fails
        self.pending = 0
        self.fenced = False

    def start(self, stop: threading.Event) -> bool:
        self.log.append("start")
        return not stop.is_set()

    def produce(self, topic: str, value: bytes | None, **rest: object) -> None:
        del value, rest
        self.pending += 1
        self.log.append(("produce", topic))

    def poll(self) -> None:
        """Nothing to serve."""

    def send_offsets(
        self, consumer: object, offsets: list[TopicPartition], keep_waiting: Callable[[], bool]
    ) -> None:
        del consumer, keep_waiting
        self.pending += 1
        self.log.append(("offsets", sorted((o.partition, o.offset) for o in offsets)))

    def commit(self, keep_waiting: Callable[[], bool]) -> None:
        del keep_waiting
        failure = self.fails.pop(0) if self.fails else None
        if failure is not None:
            self.log.append("commit fails")
            raise failure
        self.pending = 0
        self.log.append("commit")

    def abandon(self) -> None:
        if self.pending:
            self.pending = 0
            self.log.append("abort")
        if self.fenced:
            raise FencedError("another worker")


class ScriptedGroup:
    """A consumer: each `consume` calls the next step of a script."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.script: list[Callable[[], None]] = []
        self.stop = threading.Event()
        self.stored: dict[int, int] = {}

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        del topics
        self.callbacks = callbacks

    def call(self, name: str, *partitions: int) -> Callable[[], None]:
        return lambda: self.callbacks[name](self, [TopicPartition(TOPIC, p) for p in partitions])

    def consume(self, count: int, timeout: float) -> list[Message]:
        del count, timeout
        step = self.script.pop(0)
        if not self.script:
            self.stop.set()
        step()
        return []

    def committed(self, items: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        del timeout
        return [TopicPartition(TOPIC, i.partition, self.stored.get(i.partition, 0)) for i in items]

    def get_watermark_offsets(self, *_args: object, **_options: object) -> tuple[int, int]:
        return 0, 100

    def incremental_assign(self, items: list[TopicPartition]) -> None:
        self.log.append(("reads", [(item.partition, item.offset) for item in items]))

    def incremental_unassign(self, items: list[TopicPartition]) -> None:
        self.log.append(("leaves", [item.partition for item in items]))

    def close(self) -> None:
        self.log.append("close")


class Counting:
    """A processor whose state moves by one each time it is asked for a commit."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.positions: dict[Partition, int] = {}
        self.lost_error: FencedError | None = None

    def take_over(self, partitions: Sequence[Partition]) -> None:
        self.log.append(("take over", [partition.number for partition in partitions]))

    def assign(self, partition: Partition, committed: CommitPoint | None, end: int) -> int | None:
        del end
        assert committed is not None
        self.positions[partition] = committed.offset
        return committed.offset

    def revoke(self, partition: Partition) -> None:
        del self.positions[partition]

    def lost(self, partitions: Sequence[Partition]) -> None:
        del partitions
        if self.lost_error is not None:
            raise self.lost_error

    def process(self, *_batch: object) -> None:
        raise AssertionError("there is nothing to process")

    def stand_at_end(self, *_where: object) -> None:
        raise AssertionError("no end is reached")

    def tick(self) -> None:
        """Nothing depends on steps."""

    def drain(self, partitions: Collection[Partition], within_s: float) -> None:
        """Nothing is under way."""

    def prepare_commit(
        self, partitions: Collection[Partition], *, giving_up: bool
    ) -> dict[Partition, CommitPoint]:
        points = {}
        for partition in sorted(partitions):
            self.positions[partition] += 1
            points[partition] = CommitPoint(self.positions[partition])
            if giving_up:
                self.log.append(("signs off", partition.number))
        return points


class Bench:
    def __init__(self, *fails: KStreamError | None) -> None:
        self.log: list[Any] = []
        self.clock = ManualClock()
        self.group = ScriptedGroup(self.log)
        self.processor = Counting(self.log)
        self.metrics = Metrics(CollectorRegistry())
        self.writers: list[ScriptedWriter] = []
        self.fails = list(fails)
        self.committer = ExactlyOnce(self._make_writer, self.metrics)  # type: ignore[arg-type]  # does what of it is used
        self.loop = ConsumerLoop(
            consumer=self.group,  # type: ignore[arg-type]  # does what of it is used
            topics=[TOPIC],
            processor=self.processor,
            committer=self.committer,
            settings=LoopSettings(commit_interval_s=10.0, retry_s=0.0, take_attempts=1),
            clock=self.clock,
            metrics=self.metrics,
            progress=Progress(self.clock, stuck_after_s=60.0),
        )

    def _make_writer(self) -> ScriptedWriter:
        writer = ScriptedWriter(self.log, self.fails)
        self.writers.append(writer)
        return writer

    def run(self, *script: Callable[[], None]) -> list[Any]:
        self.group.script = list(script)
        self.loop.run(self.group.stop)
        return self.log

    def due(self) -> None:
        self.clock.advance(10)

    def commits(self) -> dict[str, float]:
        [metric] = self.metrics.counter(COMMITS).collect()
        return {s.labels["outcome"]: s.value for s in metric.samples if s.name.endswith("_total")}


def nothing() -> None:
    """A step in which nothing happens."""


def test_an_assignment_is_claimed_and_every_commit_carries_all_offsets() -> None:
    bench = Bench()
    log = bench.run(bench.group.call("on_assign", 0, 1), bench.due)
    assert log == [
        "start",
        ("take over", [0, 1]),
        ("offsets", [(0, 1), (1, 1)]),
        "commit",
        ("reads", [(0, 0), (1, 0)]),
        ("offsets", [(0, 2), (1, 2)]),
        "commit",
        ("signs off", 0),
        ("signs off", 1),
        ("offsets", [(0, 3), (1, 3)]),
        "commit",
        "close",
    ]
    assert bench.commits() == {"committed": 3.0}


def test_after_an_uncertain_commit_it_begins_anew_with_what_is_committed() -> None:
    bench = Bench(None, CommitUncertainError("no answer"))
    bench.group.stored[0] = 7
    log = bench.run(bench.group.call("on_assign", 0), bench.due, nothing, nothing)
    assert log[4:] == [
        ("reads", [(0, 7)]),
        ("offsets", [(0, 9)]),
        "commit fails",
        ("leaves", [0]),
        "abort",
        "start",
        ("take over", [0]),
        ("offsets", [(0, 8)]),
        "commit",
        ("reads", [(0, 7)]),
        ("signs off", 0),
        ("offsets", [(0, 9)]),
        "commit",
        "close",
    ]
    assert len(bench.writers) == 2
    assert bench.commits() == {"committed": 3.0, "aborted": 1.0}


def test_a_claim_that_fails_is_repeated_with_a_new_producer() -> None:
    bench = Bench(CommitUncertainError("a rebalance"), None)
    log = bench.run(bench.group.call("on_assign", 0), nothing)
    assert log[:8] == [
        "start",
        ("take over", [0]),
        ("offsets", [(0, 1)]),
        "commit fails",
        "abort",
        "start",
        ("take over", [0]),
        ("offsets", [(0, 1)]),
    ]


def test_a_cause_that_stays_ends_the_run() -> None:
    bench = Bench(None, *[CommitUncertainError("again")] * 5)
    with pytest.raises(CommitUncertainError, match="again"):
        bench.run(bench.group.call("on_assign", 0), bench.due, nothing)
    assert bench.log[-2:] == ["abort", "close"]


def test_a_fenced_member_ends_and_commits_nothing_more() -> None:
    bench = Bench(None, FencedError("another worker"))
    with pytest.raises(FencedError):
        bench.run(bench.group.call("on_assign", 0), bench.due, nothing)
    assert bench.log[-3:] == ["commit fails", "abort", "close"]


def test_partitions_that_go_are_committed_with_those_that_stay() -> None:
    bench = Bench()
    log = bench.run(bench.group.call("on_assign", 0, 1), bench.group.call("on_revoke", 1))
    assert log[5:9] == [
        ("signs off", 1),
        ("offsets", [(0, 2), (1, 2)]),
        "commit",
        ("leaves", [1]),
    ]


def test_when_giving_up_fails_it_is_aborted_and_what_stays_begins_anew() -> None:
    bench = Bench(None, CommitUncertainError("no answer"))
    log = bench.run(bench.group.call("on_assign", 0, 1), bench.group.call("on_revoke", 1), nothing)
    assert log[5:14] == [
        ("signs off", 1),
        ("offsets", [(0, 2), (1, 2)]),
        "commit fails",
        "abort",
        ("leaves", [1]),
        ("leaves", [0]),
        "start",
        ("take over", [0]),
        ("offsets", [(0, 1)]),
    ]


def test_lost_partitions_abort_and_the_member_goes_on_when_nobody_has_them() -> None:
    bench = Bench()

    def lose() -> None:
        bench.committer.produce("results", b"")
        bench.group.call("on_lost", 0)()

    taken = bench.group.call("on_assign", 0)
    log = bench.run(taken, lose, taken, nothing)
    assert log[5:10] == [
        ("produce", "results"),
        "abort",
        ("leaves", [0]),
        "start",
        ("take over", [0]),
    ]


@pytest.mark.parametrize("how", ["abort is refused", "another has them"])
def test_a_member_whose_lost_partitions_another_has_ends(how: str) -> None:
    bench = Bench()

    def lose() -> None:
        if how == "abort is refused":
            bench.committer.produce("results", b"")
            bench.writers[-1].fenced = True
        else:
            bench.processor.lost_error = FencedError("another worker")
        bench.group.call("on_lost", 0)()

    with pytest.raises(FencedError):
        bench.run(bench.group.call("on_assign", 0), lose, nothing)
    assert ("offsets", [(0, 2)]) not in bench.log


def test_an_end_without_a_last_commit_is_no_error() -> None:
    bench = Bench(None, CommitUncertainError("no answer"))
    log = bench.run(bench.group.call("on_assign", 0), nothing)
    assert log[-3:] == ["commit fails", "abort", "close"]
