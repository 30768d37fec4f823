"""Whole pipelines on Kafka and on the test kit's broker: the same results on both."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import ErrorLimitError
from kstream_agg.core.metrics import Metrics
from kstream_agg.kafka.dlq import origin_from_headers
from kstream_agg.pipeline import (
    Batch,
    DeadLetterTopic,
    EngineSettings,
    Pipeline,
    PipelineSettings,
    Record,
    StopAfter,
)
from kstream_agg.pipeline.run import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confluent_kafka import Consumer, Message
    from tests.contract.conftest import Bed

    Guarantee = Literal["at_least_once", "exactly_once"]
    Read = Callable[[Consumer, int], list[Message]]
    Until = Callable[..., None]


def number(message: Message) -> int:
    return int(message.value() or b"")


@pytest.fixture(params=["at_least_once", "exactly_once"])
def guarantee(request: pytest.FixtureRequest) -> Guarantee:
    return cast("Guarantee", request.param)


class Setup:
    """A pipeline of batches with topics of its own, and members that run it."""

    def __init__(self, bed: Bed, guarantee: Guarantee, partitions: int) -> None:
        self.bed = bed
        self.guarantee = guarantee
        self.source, self.out, self.dead = bed.topic(partitions), bed.topic(), bed.topic()
        self.group = bed.unique("group")
        self._observer = bed.consumer(self.group)

    def pipeline(self, count: int) -> Pipeline[Any]:
        return (
            Pipeline(self.source, group=self.group)
            .map(number)
            .reduce(Batch(count, seconds=0.2))
            .produce(lambda batch: [Record(self.out, ",".join(map(str, batch)).encode())])
            .on_error(DeadLetterTopic(self.dead), StopAfter(count=2))
        )

    @contextlib.contextmanager
    def member(self, count: int = 5) -> Iterator[Member]:
        with Member(
            self.pipeline(count),
            PipelineSettings(
                kafka=self.bed.settings,
                pipeline=EngineSettings(commit_interval_s=0.1, guarantee=self.guarantee),
            ),
            clock=SystemClock(),
            metrics=Metrics(CollectorRegistry()),
            clients=self.bed.clients,
        ) as member:
            try:
                member.loop.begin()
                yield member
            finally:
                member.loop.close()

    def committed(self) -> dict[int, int]:
        found = self._observer.committed(
            [TopicPartition(self.source, number) for number in range(4)], timeout=30
        )
        return {item.partition: item.offset for item in found if item.offset >= 0}

    def results(self, count: int, read: Read) -> list[int]:
        """So many numbers from the output's beginning on."""
        consumer = self.bed.consumer(self.bed.unique("reader"))
        consumer.subscribe([self.out])
        found: list[int] = []
        while len(found) < count:
            [message] = read(consumer, 1)
            found += [int(part) for part in (message.value() or b"").decode().split(",")]
        return found


def test_records_become_results_and_bad_ones_dead_letters(
    bed: Bed, guarantee: Guarantee, read: Read, until: Until
) -> None:
    setup = Setup(bed, guarantee, partitions=1)
    bed.send(setup.source, *[str(item).encode() for item in range(7)], b"bad", b"7")
    with setup.member() as member:
        until(lambda: setup.committed() == {0: 9}, member.loop.step)
        member.loop.finish()
    assert setup.results(8, read) == list(range(8))
    consumer = bed.consumer(bed.unique("reader"))
    consumer.subscribe([setup.dead])
    [dead] = read(consumer, 1)
    assert dead.value() == b"bad"
    origin = origin_from_headers(cast("list[tuple[str, bytes | None]]", dead.headers()))
    assert origin is not None
    assert (origin.topic, origin.partition, origin.offset) == (setup.source, 0, 7)


def test_finishing_flushes_and_commits_and_the_next_member_goes_on(
    bed: Bed, guarantee: Guarantee, read: Read, until: Until
) -> None:
    setup = Setup(bed, guarantee, partitions=1)
    bed.send(setup.source, b"0", b"1")
    with setup.member() as member:
        until(lambda: member.processor.moved, member.loop.step)
        member.loop.finish()
    assert setup.committed() == {0: 2}
    bed.send(setup.source, b"2", b"3")
    with setup.member() as member:
        until(lambda: setup.committed() == {0: 4}, member.loop.step)
    assert setup.results(4, read) == [0, 1, 2, 3]


def test_a_limit_stops_the_loop_and_nothing_behind_it_is_committed(
    bed: Bed, guarantee: Guarantee, until: Until
) -> None:
    setup = Setup(bed, guarantee, partitions=1)
    bed.send(setup.source, b"0", b"bad", b"1")
    with setup.member() as member:
        until(lambda: setup.committed() == {0: 3}, member.loop.step)
        bed.send(setup.source, b"2", b"bad", b"bad", b"3")
        with pytest.raises(ErrorLimitError, match="3 of 7 records failed and 2 are allowed"):
            until(lambda: False, member.loop.step)
    assert setup.committed() == {0: 3}


def test_a_second_member_takes_half_and_nothing_is_lost_or_done_twice(
    bed: Bed, guarantee: Guarantee, read: Read, until: Until
) -> None:
    setup = Setup(bed, guarantee, partitions=4)

    def send(start: int) -> None:
        for partition in range(4):
            values = [str(item).encode() for item in range(start + partition, start + 40, 4)]
            bed.send(setup.source, *values, partition=partition)

    send(0)
    with setup.member() as first:
        until(lambda: len(first.consumer.assignment()) == 4, first.loop.step)
        first.loop.step()
        with setup.member() as second:

            def both() -> None:
                first.loop.step()
                second.loop.step()

            until(lambda: len(second.consumer.assignment()) == 2, both)
            send(40)
            until(lambda: sum(setup.committed().values()) == 80, both)
            second.loop.finish()
        send(80)
        until(lambda: sum(setup.committed().values()) == 120, first.loop.step)
        first.loop.finish()
    assert Counter(setup.results(120, read)) == Counter(range(120))
