"""Pipelines on the in-memory broker, run by the very loop that runs them on Kafka."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.core.errors import ErrorLimitError, UnavailableError
from kstream_agg.kafka.dlq import header_value
from kstream_agg.pipeline import (
    Batch,
    DeadLetterTopic,
    Each,
    EngineSettings,
    Fold,
    PassThrough,
    Pipeline,
    Record,
    Shutdown,
    StopAfter,
    WriteTo,
)
from kstream_agg.pipeline.testing import PipelineBench

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message

    from kstream_agg.pipeline import ErrorStep, PolledBatch, Reducer

SOURCE, OUT = "source", "out"


def number(message: Message) -> int:
    return int(message.value() or b"")


def pipeline() -> Pipeline[Message]:
    return Pipeline(SOURCE, group="group")


def written(batch: list[int]) -> list[Record]:
    return [Record(OUT, ",".join(map(str, batch)).encode())]


def bench(
    make: Callable[[], Pipeline[Any]],
    partitions: int = 1,
    workers: int = 1,
    **settings: Any,  # noqa: ANN401 - fields of the settings, checked by them
) -> PipelineBench:
    return PipelineBench(
        make,
        outputs=[OUT],
        partitions=partitions,
        workers=workers,
        settings=EngineSettings(**settings),
    )


def send(on: PipelineBench, *numbers: int, partition: int = 0) -> None:
    for item in numbers:
        on.send(SOURCE, str(item).encode(), partition=partition)


def outputs(on: PipelineBench) -> list[str]:
    return [(record.value or b"").decode() for record in on.records(OUT)]


def flat(on: PipelineBench) -> list[int]:
    return [int(part) for text in outputs(on) for part in text.split(",")]


def batching(
    reducer: Callable[[], Reducer[int, list[int]]], *errors: ErrorStep
) -> Callable[[], Pipeline[Any]]:
    return lambda: pipeline().map(number).reduce(reducer()).produce(written).on_error(*errors)


# --- batches ---------------------------------------------------------------------------------


def test_batches_close_by_count() -> None:
    with bench(batching(lambda: Batch(3))) as on:
        send(on, *range(7))
        on.run()
        assert outputs(on) == ["0,1,2", "3,4,5"]


def test_batches_close_by_time_since_their_first_item() -> None:
    with bench(batching(lambda: Batch(seconds=5))) as on:
        send(on, 1)
        on.advance(3)
        send(on, 2)
        on.advance(1.9)
        assert outputs(on) == []
        on.advance(0.1)
        assert outputs(on) == ["1,2"]
        send(on, 3)
        on.advance(4.9)
        assert outputs(on) == ["1,2"]
        on.advance(0.1)
        assert outputs(on) == ["1,2", "3"]


def test_batches_close_by_bytes() -> None:
    with bench(batching(lambda: Batch(bytes=10, size=lambda item: item))) as on:
        send(on, 4, 5, 1, 20, 3)
        on.run()
        assert outputs(on) == ["4,5,1", "20"]


def test_a_fold_folds_and_begins_anew() -> None:
    def make() -> Pipeline[Any]:
        sums: Fold[int, int] = Fold(lambda: 0, lambda total, item: total + item, count=3)
        return pipeline().map(number).reduce(sums).produce(lambda total: written([total]))

    with bench(make) as on:
        send(on, 1, 2, 3, 10, 20, 30, 5)
        on.run()
        assert flat(on) == [6, 60]


def test_reduces_work_in_sequence_and_offsets_move_behind_the_last() -> None:
    def make() -> Pipeline[Any]:
        return (
            pipeline()
            .map(number)
            .reduce(Batch(2))
            .reduce(PassThrough("Hello"))
            .reduce(Batch(2))
            .produce(lambda pairs: [Record(OUT, repr(pairs).encode())])
        )

    with bench(make) as on:
        send(on, *range(7))
        on.advance(1)
        assert outputs(on) == ["[[0, 1], [2, 3]]"]
        assert on.committed(SOURCE) == {0: 4}


def test_a_pipeline_without_steps_only_commits() -> None:
    with bench(pipeline) as on:
        send(on, 1, 2)
        on.advance(1)
        assert on.committed(SOURCE) == {0: 2}


def test_maps_follow_each_other() -> None:
    def make() -> Pipeline[Any]:
        doubled = pipeline().map(number).map(lambda item: 2 * item)
        return doubled.produce(lambda item: written([item]))

    with bench(make) as on:
        send(on, 1, 2)
        on.run()
        assert flat(on) == [2, 4]


def test_a_batch_map_takes_one_partition_at_a_time_and_refuses_single_records() -> None:
    def total(batch: PolledBatch) -> int:
        found = 0
        for index, message in enumerate(batch.messages):
            if (message.value() or b"").isdigit():
                found += number(message)
            else:
                batch.reject(index, ValueError("no number"))
        return found

    def make() -> Pipeline[Any]:
        totals = pipeline().map_batch(total).produce(lambda item: written([item]))
        return totals.on_error(DeadLetterTopic())

    with bench(make, partitions=2) as on:
        send(on, 1, 2)
        on.send(SOURCE, b"x", partition=0)
        send(on, 10, 20, partition=1)
        on.advance(1)
        assert sorted(flat(on)) == [3, 30]
        assert [record.value for record in on.records(f"{SOURCE}-dlq")] == [b"x"]
        assert on.committed(SOURCE) == {0: 3, 1: 2}


def test_an_inline_map_runs_where_is_read_and_waits_in_its_own_thread() -> None:
    reading = threading.current_thread()
    by_reader: list[bool] = []
    answers = [True]

    def count(batch: PolledBatch) -> int:
        by_reader.append(threading.current_thread() is reading)
        if not answers[0]:
            raise UnavailableError("the registry does not answer")
        return len(batch.messages)

    def make() -> Pipeline[Any]:
        counts = pipeline().map_batch(count, inline=True).reduce(Batch(2))
        return counts.produce(written)

    with bench(make, batch_records=2) as on:
        send(on, 1, 2, 3, 4)
        on.run()
        assert by_reader == [True, True]
        answers[0] = False
        send(on, 5, 6)
        on.advance(1)
        assert by_reader[2:4] == [True, False]
        send(on, 7, 8)
        on.advance(1)
        # Behind what waits, nothing is mapped ahead.
        assert not any(by_reader[4:])
        answers[0] = True
        on.advance(1)
        on.advance(1)
        assert flat(on) == [2, 2, 2, 2]
        assert on.committed(SOURCE) == {0: 8}
        before = len(by_reader)
        send(on, 9, 10, 11, 12)
        on.run()
        assert by_reader[before:] == [True, True]


def test_maps_of_two_partitions_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)

    def meet(message: Message) -> int:
        both.wait()
        return number(message)

    def make() -> Pipeline[Any]:
        return pipeline().map(meet).produce(lambda item: written([item]))

    with bench(make, partitions=2, map_threads=2) as on:
        send(on, 1, partition=0)
        send(on, 2, partition=1)
        on.run()
        assert sorted(flat(on)) == [1, 2]


def test_at_shutdown_a_lane_that_is_behind_is_waited_for() -> None:
    go = threading.Event()

    def hold(message: Message) -> int:
        assert message.partition() == 0 or go.wait(60)
        return number(message)

    def make() -> Pipeline[Any]:
        return pipeline().map(hold).reduce(Batch(100)).produce(written)

    on = bench(make, partitions=2, map_threads=2, stop_within_s=60)
    [worker] = on.workers
    send(on, 1, partition=0)
    send(on, 2, partition=1)
    while worker.member.processor.moved < 2:
        worker.member.loop.step()
    joint = worker.member.processor._chain._runners[2]
    stopping = threading.Thread(target=on.stop)
    stopping.start()
    while not joint.lanes_arrived:
        time.sleep(0.001)
    go.set()
    stopping.join(60)
    assert on.committed(SOURCE) == {0: 1, 1: 1}
    assert sorted(flat(on)) == [1, 2]


@pytest.mark.parametrize("map_threads", [1, 3])
def test_order_is_kept_within_a_partition(map_threads: int) -> None:
    with bench(
        batching(lambda: Batch(7, seconds=1)),
        partitions=3,
        map_threads=map_threads,
        batch_records=5,
    ) as on:
        for item in range(90):
            send(on, item, partition=item % 3)
        on.advance(1)
        found = flat(on)
        assert sorted(found) == list(range(90))
        for partition in range(3):
            assert [item for item in found if item % 3 == partition] == list(
                range(partition, 90, 3)
            )


# --- offsets, shutdown, partitions that move -------------------------------------------------


def test_what_is_in_an_open_batch_is_not_committed() -> None:
    with bench(batching(lambda: Batch(3))) as on:
        send(on, *range(5))
        on.advance(1)
        assert on.committed(SOURCE) == {0: 3}


@pytest.mark.parametrize(
    ("on_shutdown", "expected", "committed"),
    [(Shutdown.FLUSH, ["0,1,2", "3,4"], {0: 5}), (Shutdown.DROP, ["0,1,2"], {0: 3})],
)
def test_at_shutdown_an_open_batch_is_flushed_or_dropped(
    on_shutdown: Shutdown, expected: list[str], committed: dict[int, int]
) -> None:
    with bench(batching(lambda: Batch(3, on_shutdown=on_shutdown))) as on:
        send(on, *range(5))
        on.run()
        on.stop()
        assert outputs(on) == expected
        assert on.committed(SOURCE) == committed
        on.add_worker()
        on.run()
        on.stop()
        assert sorted(flat(on)) == list(range(5 if on_shutdown is Shutdown.FLUSH else 3))


def test_after_a_crash_what_was_not_committed_is_read_again() -> None:
    with bench(batching(lambda: Batch(3))) as on:
        send(on, *range(5))
        on.advance(1)
        send(on, 5, 6, 7)
        on.run()
        on.workers[0].kill()
        on.add_worker()
        on.run()
        assert outputs(on) == ["0,1,2", "3,4,5", "3,4,5"]


@pytest.mark.parametrize("on_shutdown", list(Shutdown))
def test_partitions_move_to_a_new_worker_and_nothing_is_lost_or_done_twice(
    on_shutdown: Shutdown,
) -> None:
    with bench(batching(lambda: Batch(100, on_shutdown=on_shutdown)), partitions=4) as on:
        for item in range(40):
            send(on, item, partition=item % 4)
        on.run()
        second = on.add_worker()
        on.run()
        assert len(second.consumer.assignment()) == 2
        for item in range(40, 80):
            send(on, item, partition=item % 4)
        on.run()
        assert (flat(on) == []) == (on_shutdown is Shutdown.DROP)
        for item in range(80, 800):
            send(on, item, partition=item % 4)
        on.advance(1)
        found = Counter(flat(on))
        assert set(found.values()) == {1}
        committed = on.committed(SOURCE)
        assert sum(committed.values()) == len(found)
        on.stop()


def test_lost_partitions_are_not_committed_and_the_others_go_on() -> None:
    with bench(batching(lambda: Batch(4)), partitions=2) as on:
        send(on, 0, 2, partition=0)
        send(on, 1, partition=1)
        on.run()
        [first] = on.workers
        assert first.consumer.member is not None
        on.broker.expel("group", first.consumer.member)
        send(on, 3, partition=1)
        on.advance(1)
        assert sorted(flat(on)) == [0, 1, 2, 3]
        assert on.committed(SOURCE) == {0: 2, 1: 2}


# --- exactly once ----------------------------------------------------------------------------


def exactly_once(reducer: Callable[[], Reducer[int, list[int]]], **settings: Any) -> PipelineBench:  # noqa: ANN401 - as `bench`
    make = batching(reducer, DeadLetterTopic())
    return bench(make, guarantee="exactly_once", batch_records=7, **settings)


def test_results_and_offsets_become_visible_together() -> None:
    with exactly_once(lambda: Batch(3)) as on:
        send(on, *range(5))
        on.run()
        assert outputs(on) == []
        on.advance(1)
        assert outputs(on) == ["0,1,2"]
        assert on.committed(SOURCE) == {0: 3}


def test_after_a_crash_nothing_is_there_twice() -> None:
    with exactly_once(lambda: Batch(3)) as on:
        send(on, *range(5))
        on.advance(1)
        send(on, 5, 6, 7)
        on.send(SOURCE, b"bad")
        send(on, 8)
        on.run()
        on.workers[0].kill()
        on.add_worker()
        on.run()
        on.stop()
        assert flat(on) == list(range(9))
        assert [record.value for record in on.records(f"{SOURCE}-dlq")] == [b"bad"]


def test_a_member_that_the_group_has_given_up_writes_nothing() -> None:
    with exactly_once(lambda: Batch(1), partitions=2) as on:
        send(on, 0, 1)
        on.run()
        [zombie] = on.workers
        assert zombie.consumer.member is not None
        on.broker.expel("group", zombie.consumer.member)
        on.add_worker()
        on.clock.advance(1)
        on.run()
        on.advance(1)
        assert sorted(flat(on)) == [0, 1]


def send_some(on: PipelineBench, random: Random, first: int) -> int:
    count = random.randrange(12)
    for item in range(first, first + count):
        text = f"bad{item}" if random.random() < 0.1 else str(item)
        on.send(SOURCE, text.encode(), partition=random.randrange(3))
    return count


GAME = ["send", "send", "send", "step", "step", "run", "time", "add", "stop", "kill", "expel"]


def by_record(on_shutdown: Shutdown, **options: int) -> PipelineBench:
    return exactly_once(lambda: Batch(4, seconds=3, on_shutdown=on_shutdown), **options)


def by_poll_inline(on_shutdown: Shutdown, **options: int) -> PipelineBench:
    """Maps whole polls in the thread that reads."""

    def make() -> Pipeline[Any]:
        batch: Batch[list[int]] = Batch(2, seconds=3, on_shutdown=on_shutdown)
        numbers = pipeline().map_batch(numbers_of, inline=True).reduce(batch)
        flattened = numbers.produce(lambda lists: written([*chain.from_iterable(lists)]))
        return flattened.on_error(DeadLetterTopic())

    return bench(make, guarantee="exactly_once", batch_records=7, **options)


def numbers_of(batch: PolledBatch) -> list[int]:
    found = []
    for index, message in enumerate(batch.messages):
        if (message.value() or b"").isdigit():
            found.append(number(message))
        else:
            batch.reject(index, ValueError("no number"))
    return found


@pytest.mark.parametrize("start", [by_record, by_poll_inline])
@pytest.mark.parametrize("seed", range(16))
def test_whatever_happens_each_record_counts_once(
    seed: int, start: Callable[..., PipelineBench]
) -> None:
    random = Random(seed)  # noqa: S311 - plays a game
    sent = 0
    on_shutdown = random.choice(list(Shutdown))
    with start(on_shutdown, partitions=3, map_threads=random.choice([1, 2])) as on:
        for _ in range(60):
            match random.choice(GAME):
                case "send":
                    sent += send_some(on, random, sent)
                case "run":
                    on.run()
                case "step":
                    # Nobody waits for the steps' threads: whatever comes next finds them at work.
                    for worker in on.workers:
                        worker.member.loop.step()
                case "time":
                    on.advance(random.random() * 3)
                case "add" if len(on.workers) < 3:
                    on.add_worker()
                case "stop" if len(on.workers) > 1:
                    random.choice(on.workers).stop()
                case "kill" if len(on.workers) > 1:
                    random.choice(on.workers).kill()
                case "expel":
                    member = random.choice(on.workers).consumer.member
                    assert member is not None
                    on.broker.expel("group", member)
        for _ in range(4):
            on.advance(3)
        on.stop()
        dead = [int((r.value or b"")[3:]) for r in on.records(f"{SOURCE}-dlq")]
        assert Counter(flat(on) + dead) == Counter(range(sent))


# --- failures --------------------------------------------------------------------------------


def test_the_error_step_gets_the_original_message_in_its_place() -> None:
    with bench(batching(lambda: Batch(2), DeadLetterTopic())) as on:
        send(on, 1)
        on.send(SOURCE, b"bad", key=b"key", headers=[("traceparent", b"00-1")])
        send(on, 2, 3)
        on.advance(1)
        assert outputs(on) == ["1,2"]
        assert on.committed(SOURCE) == {0: 3}
        [dead] = on.records(f"{SOURCE}-dlq")
        assert (dead.key, dead.value) == (b"key", b"bad")
        found = {name: header_value(dead.headers, name) for name, _value in dead.headers}
        assert found["traceparent"] == "00-1"
        assert (found["origin.partition"], found["origin.offset"]) == ("0", "1")
        assert (found["error.stage"], found["error.class"]) == ("map number", "ValueError")


def test_a_dead_letter_is_not_passed_by_an_offset_before_it_is_written() -> None:
    with bench(batching(lambda: Batch(2), DeadLetterTopic())) as on:
        send(on, 1, 2, 3)
        on.send(SOURCE, b"bad")
        on.advance(1)
        assert on.committed(SOURCE) == {0: 2}
        assert on.records(f"{SOURCE}-dlq") == []
        send(on, 4)
        on.advance(1)
        assert on.committed(SOURCE) == {0: 5}
        assert len(on.records(f"{SOURCE}-dlq")) == 1


def test_records_that_all_fail_do_not_wait_for_a_batch() -> None:
    with bench(batching(lambda: Batch(2), DeadLetterTopic())) as on:
        on.send(SOURCE, b"bad")
        on.advance(1)
        assert on.committed(SOURCE) == {0: 1}


def test_a_batch_that_a_step_refuses_goes_to_the_error_step_whole() -> None:
    def refuse_even(batch: list[int]) -> None:
        if batch[0] % 2 == 0:
            raise ValueError("even")

    def make() -> Pipeline[Any]:
        refusing = pipeline().map(number).reduce(Batch(2)).reduce(Each(refuse_even))
        return refusing.produce(written).on_error(DeadLetterTopic("set-aside"))

    with bench(make) as on:
        send(on, 0, 1, 3, 4, 6, 7)
        on.advance(1)
        assert outputs(on) == ["3,4"]
        dead = on.records("set-aside")
        assert [record.value for record in dead] == [b"0", b"1", b"6", b"7"]
        assert {header_value(record.headers, "error.stage") for record in dead} == {
            "reduce 2 refuse_even"
        }
        assert on.committed(SOURCE) == {0: 6}


def test_an_item_that_a_fold_refuses_leaves_the_others() -> None:
    def add(total: int, item: int) -> int:
        if item == 13:
            raise ValueError("unlucky")
        return total + item

    def make() -> Pipeline[Any]:
        sums: Fold[int, int] = Fold(lambda: 0, add, count=2)
        folded = pipeline().map(number).reduce(sums).produce(lambda total: written([total]))
        return folded.on_error(DeadLetterTopic())

    with bench(make) as on:
        send(on, 1, 13, 2)
        on.advance(1)
        assert flat(on) == [3]
        assert [record.value for record in on.records(f"{SOURCE}-dlq")] == [b"13"]


def test_failures_are_written_to_a_stream_with_their_place() -> None:
    stream = io.StringIO()
    with bench(batching(lambda: Batch(1), WriteTo(stream))) as on:
        on.send(SOURCE, b"bad")
        on.run()
    assert stream.getvalue().startswith("source/0/0 map number: ValueError: invalid literal")
    assert stream.getvalue().endswith(": b'bad'\n")


def test_the_first_failure_stops_a_pipeline_without_error_steps() -> None:
    with bench(lambda: pipeline().map(number)) as on:
        send(on, 1)
        on.send(SOURCE, b"bad")
        with pytest.raises(ErrorLimitError, match="source/0/1 map number: ValueError"):
            on.run()
        assert not on.workers


def test_a_limit_by_count_stops_the_loop_and_commits_nothing_behind_it() -> None:
    stop = StopAfter(count=2)
    with bench(batching(lambda: Batch(1), DeadLetterTopic(), stop), batch_records=1) as on:
        for value in (b"1", b"bad", b"2", b"bad", b"3"):
            on.send(SOURCE, value)
        on.advance(1)
        assert on.committed(SOURCE) == {0: 5}
        on.send(SOURCE, b"bad")
        with pytest.raises(ErrorLimitError, match="3 of 6 records failed and 2 are allowed"):
            on.advance(1)
        assert on.committed(SOURCE) == {0: 5}
        assert len(on.records(f"{SOURCE}-dlq")) == 2


def test_a_limit_by_ratio_stops_the_loop_once_there_are_enough_records() -> None:
    stop = StopAfter(ratio=0.5, at_least=10)
    with bench(batching(lambda: Batch(1), stop), batch_records=1) as on:
        for _ in range(9):
            on.send(SOURCE, b"bad")
        on.run()
        send(on, *range(9))
        on.run()
        on.send(SOURCE, b"bad")
        with pytest.raises(ErrorLimitError, match=r"10 of 19 records failed and a share of 0\.5"):
            on.run()


def test_while_something_does_not_answer_the_batch_waits_and_nothing_is_lost() -> None:
    answers = [False]
    asked: list[int] = []

    def ask(batch: list[int]) -> None:
        asked.append(batch[0])
        if not answers[0]:
            raise UnavailableError("the database does not answer")

    def make() -> Pipeline[Any]:
        return pipeline().map(number).reduce(Batch(2)).reduce(Each(ask)).produce(written)

    with bench(make, batch_records=2, waiting_records=4, stuck_after_s=30) as on:
        send(on, *range(40))
        on.advance(1)
        assert asked == [0, 0]
        assert on.committed(SOURCE) == {}
        waiting = on.workers[0].member.processor
        assert waiting.check() is None
        on.advance(30)
        assert waiting.check() == "step 'reduce 2 ask' has waited for 31 s"
        answers[0] = True
        on.advance(1)
        on.advance(1)
        assert flat(on) == list(range(40))
        assert waiting.check() is None
        assert on.committed(SOURCE) == {0: 40}


# --- steps that hang --------------------------------------------------------------------------


class Hanging:
    """A step that stays at work until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, _item: int) -> None:
        self.entered.set()
        assert self.go.wait(60)


def test_a_step_that_hangs_is_told_and_does_not_hold_up_the_loop_or_the_end() -> None:
    hanging = Hanging()
    on = bench(
        lambda: pipeline().map(number).reduce(Each(hanging)).produce(lambda i: written([i])),
        batch_records=1,
        waiting_records=2,
        stop_within_s=0.2,
    )
    try:
        send(on, *range(100))
        loop, processor = on.workers[0].member.loop, on.workers[0].member.processor
        # One at work, two wait in front of each step, one batch is kept by the loop: no more.
        before = -1
        while processor.moved != before or not hanging.entered.is_set():
            before = processor.moved
            loop.step()
            on.clock.advance(0.01)
            if not hanging.entered.is_set():
                hanging.entered.wait(0.05)
        for _ in range(20):
            loop.step()
        assert processor.moved <= 6
        on.clock.advance(61)
        assert (processor.check() or "").startswith("step 'reduce 1 Hanging' has been in work")
        began = time.monotonic()
        on.stop()
        assert time.monotonic() - began < 30
        assert on.committed(SOURCE) == {}
    finally:
        hanging.go.set()
