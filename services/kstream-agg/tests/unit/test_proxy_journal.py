"""The write-ahead log: when it answers, what it keeps, what it sends again. On a real LMDB."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import psutil
import pytest
from confluent_kafka import KafkaError

from kstream_agg.proxy.journal import Journal
from kstream_agg.proxy.resending import LoggedRecord, LogPorts, decode_batch, encode_batch
from kstream_agg.proxy.residency import release_mapped_pages
from kstream_agg.proxy.store import LogWriteError, orphaned_slots, take_slot
from kstream_agg.proxy.tallies import Tallies

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from confluent_kafka import Message

    from kstream_agg.proxy.outbox import Outbox
    from kstream_agg.proxy.outcomes import Failure

P = ParamSpec("P")
MEBIBYTE = 1 << 20
TIMED_OUT = KafkaError._MSG_TIMED_OUT
UNKNOWN = KafkaError.UNKNOWN_TOPIC_OR_PART


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an asynchronous test in a loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def ignore_report(error: KafkaError | None, message: Message) -> None:
    """The topics' numbers are not what is looked at here."""
    del error, message


class FakeMessage:
    def topic(self) -> str:
        return "t"


class FakeOutbox:
    def __init__(self, *, away: bool = False) -> None:
        self.away = away


class Kafka:
    """Takes what the journal sends again; the test says what becomes of it."""

    def __init__(self) -> None:
        self.sent: list[tuple[LoggedRecord, Any]] = []
        self.full = False

    def send(self, record: LoggedRecord, callback: Any) -> None:  # noqa: ANN401 - any callable
        if self.full:
            raise BufferError
        self.sent.append((record, callback))

    def report(self, error: int | None = None) -> list[object]:
        """Report on everything sent; the values it was about."""
        sent, self.sent = self.sent, []
        for _record, callback in sent:
            callback(None if error is None else KafkaError(error), FakeMessage())
        return [record.value for record, _callback in sent]


class Bench:
    """A journal with its surroundings."""

    def __init__(self, folder: Path, *, away: bool = False, max_bytes: int = MEBIBYTE) -> None:
        self.store = take_slot(folder, max_bytes)
        self.outbox = FakeOutbox(away=away)
        self.kafka = Kafka()
        self.tallies = Tallies()
        self.answers: dict[str, Failure | None] = {}
        ports = LogPorts(
            self.store,
            cast("Outbox", self.outbox),
            self.tallies,
            ignore_report,
            self.kafka.send,
        )
        self.journal = Journal(ports, max_bytes=max_bytes, interval_s=0.001)

    def accept(self, value: str, *, flying: bool = True) -> Callable[[int | None], None]:
        """Give the journal a record; returns what reports its first delivery."""
        record = LoggedRecord("t", value, None, -1, 1, [("h", b"\x00")])

        def settle(index: int, failure: Failure | None) -> None:
            assert index == 0
            assert value not in self.answers
            self.answers[value] = failure

        entry = self.journal.entry(record, 0, settle)
        entry.flying = flying

        def report(error: int | None = None) -> None:
            entry(None if error is None else KafkaError(error), cast("Message", FakeMessage()))

        return cast("Callable[[int | None], None]", report)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds; the test's own time-out ends a wait in vain."""
        while not condition():  # noqa: ASYNC110 - the journal has no event for each of these
            await asyncio.sleep(0.001)

    def stored(self) -> list[str]:
        """The values of the records on disk."""
        return [
            record.value
            for number, _count, _size in self.store.batches()
            for record in decode_batch(self.store.read(number) or b"\x90")
        ]


@in_loop
async def test_what_kafka_confirms_first_never_touches_the_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    report = bench.accept("a")
    report(None)
    assert bench.answers == {"a": None}
    bench.journal.start()
    waits = bench.accept("b")
    await bench.until(lambda: "b" in bench.answers)
    assert bench.stored() == ["b"]
    waits(None)
    assert await bench.journal.close() == 0


@in_loop
async def test_a_record_that_waits_is_on_disk_before_its_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.journal.start()
    reports = [bench.accept(name) for name in "abc"]
    await bench.until(lambda: len(bench.answers) == 3)
    assert bench.answers == {"a": None, "b": None, "c": None}
    assert bench.stored() == ["a", "b", "c"]
    for report in reports:
        report(None)
    # The count follows the disk: a thread writes there.
    await bench.until(lambda: bench.journal.stored_bytes == 0)
    assert bench.stored() == []
    assert bench.kafka.sent == []
    await bench.journal.close()


@in_loop
async def test_while_kafka_is_away_records_go_to_disk_and_are_sent_when_it_is_back(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, away=True)
    bench.journal.start()
    for name in "ab":
        bench.accept(name, flying=False)
    await bench.until(lambda: len(bench.answers) == 2)
    assert bench.kafka.sent == []
    bench.outbox.away = False
    bench.journal.wake()
    await bench.until(lambda: len(bench.kafka.sent) == 2)
    assert bench.kafka.sent[0][0].headers == [("h", b"\x00")]
    assert bench.kafka.report() == ["a", "b"]
    await bench.until(lambda: not bench.stored())
    assert await bench.journal.close() == 0


@in_loop
async def test_what_librdkafka_gave_up_on_is_sent_again_until_kafka_takes_it(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.journal.start()
    first, second = bench.accept("a"), bench.accept("b")
    await bench.until(lambda: len(bench.answers) == 2)
    first(TIMED_OUT)
    second(None)
    for _ in range(2):
        await bench.until(lambda: bench.kafka.sent)
        assert bench.kafka.report(TIMED_OUT) == ["a"]
    await bench.until(lambda: bench.kafka.sent)
    assert bench.kafka.report() == ["a"]
    await bench.until(lambda: not bench.stored())
    await bench.journal.close()


@in_loop
async def test_given_up_before_it_was_written_it_is_written_and_sent_from_there(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.accept("a")(TIMED_OUT)
    assert bench.answers == {}
    bench.journal.start()
    await bench.until(lambda: bench.kafka.sent)
    assert bench.answers == {"a": None}
    assert bench.kafka.report() == ["a"]
    await bench.journal.close()


@in_loop
async def test_what_kafka_will_never_take_fails_before_its_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.accept("a")(UNKNOWN)
    failure = bench.answers["a"]
    assert failure is not None
    assert failure.status == 404
    bench.journal.start()
    await bench.journal.close()


@in_loop
async def test_and_after_its_answer_is_set_aside_and_tried_at_the_next_start(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.journal.start()
    report = bench.accept("a")
    await bench.until(lambda: bench.answers)
    report(UNKNOWN)
    await bench.until(lambda: bench.kafka.sent)
    bench.kafka.report(UNKNOWN)
    await bench.until(bench.store.parked)
    assert bench.journal.parked_count == 1
    assert bench.stored() == []
    await bench.journal.close()
    later = Bench(tmp_path)
    later.journal.start()
    await later.until(lambda: later.kafka.sent)
    assert later.kafka.report() == ["a"]
    await later.until(lambda: not later.stored())
    assert later.store.parked() == []
    await later.journal.close()


@in_loop
async def test_a_crash_loses_nothing_and_the_next_start_sends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, away=True)
    bench.journal.start()
    for number in range(40):
        bench.accept(str(number), flying=False)
    await bench.until(lambda: len(bench.answers) == 40)
    # A crash: nothing is closed in order, only the operating system frees the files.
    bench.store.close()
    later = Bench(tmp_path)
    later.journal.start()
    await later.until(lambda: len(later.kafka.sent) == 40)
    assert later.kafka.report() == [str(number) for number in range(40)]
    assert await later.journal.close() == 0
    for task in bench.journal._tasks:
        task.cancel()
    await asyncio.gather(*bench.journal._tasks, return_exceptions=True)


@in_loop
async def test_a_full_log_takes_nothing_more_and_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, away=True, max_bytes=1000)
    bench.journal.start()
    bench.accept("x" * 2000, flying=False)
    await bench.until(lambda: bench.answers)
    assert bench.journal.is_full
    bench.accept("late", flying=False)
    await bench.until(lambda: "late" in bench.answers)
    failure = bench.answers["late"]
    assert failure is not None
    assert failure.status == 503
    # What is on its way to Kafka may still arrive: its client waits for that.
    report = bench.accept("flies")
    await asyncio.sleep(0.02)
    assert "flies" not in bench.answers
    report(None)
    assert bench.answers["flies"] is None
    await bench.journal.close()


@in_loop
async def test_a_log_that_cannot_be_written_refuses_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, away=True)
    broken = [True]
    commit = bench.store.commit

    def commit_or_not(*arguments: Any) -> None:  # noqa: ANN401 - passed on
        if broken:
            raise LogWriteError("no space left on device")
        commit(*arguments)

    monkeypatch.setattr(bench.store, "commit", commit_or_not)
    bench.journal.start()
    bench.accept("a", flying=False)
    await bench.until(lambda: bench.answers)
    failure = bench.answers["a"]
    assert failure is not None
    assert failure.status == 503
    assert "no space left" in str(bench.journal.broken)
    broken.clear()

    # It tries again by itself a little later: until then, each is refused.
    for attempt in range(1000):
        name = f"b{attempt}"
        bench.accept(name, flying=False)
        await bench.until(functools.partial(bench.answers.__contains__, name))
        if bench.answers[name] is None:
            break
    assert not bench.journal.is_full
    await bench.journal.close()


@in_loop
async def test_a_full_queue_is_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.kafka.full = True
    bench.journal.start()
    bench.accept("a", flying=False)
    await bench.until(lambda: bench.answers)
    bench.kafka.full = False
    await bench.until(lambda: bench.kafka.sent)
    assert bench.kafka.report() == ["a"]
    await bench.journal.close()


@in_loop
async def test_closing_writes_what_is_open(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.accept("a")
    assert await bench.journal.close() == 1
    with take_slot(tmp_path, MEBIBYTE) as store:
        ((_number, count, _size),) = store.batches()
        assert count == 1


@in_loop
async def test_an_orphaned_log_is_taken_over(tmp_path: Path) -> None:
    gone = Bench(tmp_path)
    gone.accept("orphan")
    await gone.journal.close()
    with take_slot(tmp_path, MEBIBYTE):  # a new worker takes another slot
        bench = Bench(tmp_path)
        bench.journal.start()
        assert list(orphaned_slots(tmp_path, MEBIBYTE)) == []
    (other,) = orphaned_slots(tmp_path, MEBIBYTE)
    with other:
        assert await bench.journal.adopt(other) == 1
        assert other.batches() == []
    await bench.until(lambda: bench.kafka.sent)
    assert bench.kafka.report() == ["orphan"]
    await bench.journal.close()


def test_a_slot_is_held_by_one(tmp_path: Path) -> None:
    with take_slot(tmp_path, MEBIBYTE) as first, take_slot(tmp_path, MEBIBYTE) as second:
        assert first.folder != second.folder
        first.keep_topics({"a": 3})
        assert first.topics() == {"a": 3}
        assert second.topics() == {}
    with take_slot(tmp_path, MEBIBYTE) as again:
        assert again.topics() == {"a": 3}


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_a_batch_knows_its_size(tmp_path: Path, count: int) -> None:
    record = LoggedRecord("t", None, None, -1, 0, None)
    with take_slot(tmp_path, 64 * MEBIBYTE) as store:
        store.commit([(7, encode_batch([record] * count))])
        assert [(number, found) for number, found, _size in store.batches()] == [(7, count)]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory is not released here")
def test_reading_the_log_back_keeps_little_resident(tmp_path: Path) -> None:
    blob = bytes(MEBIBYTE)
    with take_slot(tmp_path, 128 * MEBIBYTE) as store:
        for number in range(100):
            store.commit([(number, blob)])
        before = psutil.Process().memory_info().rss
        for number in range(100):
            assert store.read(number) == blob
        assert psutil.Process().memory_info().rss - before < 40 * MEBIBYTE
        assert release_mapped_pages(store.folder / "data.mdb")
    assert not release_mapped_pages(tmp_path / "no-such-file")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory is not released here")
def test_opening_a_log_keeps_little_resident(tmp_path: Path) -> None:
    blob = bytes(MEBIBYTE)
    with take_slot(tmp_path, 128 * MEBIBYTE) as store:
        store.commit([(number, blob) for number in range(64)])
    with take_slot(tmp_path, 128 * MEBIBYTE) as store:
        before = psutil.Process().memory_info().rss
        assert len(store.batches()) == 64
        assert psutil.Process().memory_info().rss - before < 20 * MEBIBYTE
