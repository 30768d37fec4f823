"""What the agg-producer makes of its topic while things break: no window lost, none twice, none
wrong, by a recomputation from the raw topic.

The stack is the tests' own: broker and registry are ended and started again.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from market import (
    PERIOD_S,
    START_MS,
    WAIT_S,
    Feeder,
    Market,
    Recomputed,
    RunningAggregator,
    assert_exact,
    command,
    end_of,
    members,
    taken,
    unruly_trades,
    wait_for,
)
from prometheus_client import CollectorRegistry

from kstream_agg.aggregate.settings import WindowSettings
from kstream_agg.core.errors import CommitUncertainError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.names import changelog_topic, dead_letter_topic, late_topic
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import TopicSettings
from kstream_agg.kafka.group_transactions import GroupTransactionWriter
from kstream_agg.kafka.wire import RecordEncoder
from kstream_agg.stack import control
from kstream_agg.stack.artifacts import ArtifactCache, default_cache_dir
from kstream_agg.stack.java import class_path, java_command
from kstream_agg.verify.reading import TopicReader

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

_YEAR_MS = 365 * 86_400_000

MakeMarket = Callable[..., Market]


@pytest.fixture
def make_market(broken_stack: StackEndpoints) -> Iterator[MakeMarket]:
    with contextlib.ExitStack() as open_registries:

        def make(**changes: object) -> Market:
            market = Market(broken_stack, **changes)
            open_registries.enter_context(market.registry)
            return market

        yield make


@contextlib.contextmanager
def away(stack: StackEndpoints, component: str) -> Iterator[None]:
    """Ends a component, and starts it again behind the block."""
    control.suspend(stack.data_dir, component)
    try:
        yield
    finally:
        control.resume(stack.data_dir, component)


def test_killed_ten_times_at_random_moments(make_market: MakeMarket) -> None:
    market = make_market()
    chance = random.Random(11)  # noqa: S311 - a test's moments
    admin = AdminClient({"bootstrap.servers": market.settings.kafka.bootstrap_servers})
    with Feeder(market, seed=11):
        for number in range(10):
            before = taken(market)
            with command(market.settings, CONSUME__COMMIT_INTERVAL_S="0.3") as process:
                further = chance.randrange(1, 1_500)
                wait_for(lambda: taken(market) > before + further)  # noqa: B023 - called at once
                if number % 2:  # a transaction is short: chance alone would seldom meet one
                    wait_for(lambda: is_in_transaction(admin, market))
                process.kill()
    with command(market.settings) as process:
        market.wait_until_all_is_taken()
        end_of(market, process)
    wanted = assert_exact(market)
    assert len(wanted.closed) > 100
    assert len(set(wanted.late.values())) == 2
    # Some of the moments were in the middle of a transaction: what it had written is there, and
    # no reader of committed records is given it.
    assert hidden_records(market) > 0


def is_in_transaction(admin: AdminClient, market: Market) -> bool:
    """Whether records stand in the changelog that are not committed yet."""
    topic = changelog_topic(market.settings.group_id, market.topic)
    ends: list[int] = []
    for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED):
        wanted = {
            TopicPartition(topic, number): OffsetSpec.latest()  # type: ignore[no-untyped-call]  # theirs
            for number in range(market.settings.topic.partitions)
        }
        found = admin.list_offsets(wanted, isolation_level=level)
        ends.append(sum(int(future.result().offset) for future in found.values()))
    return ends[0] > ends[1]


def hidden_records(market: Market) -> int:
    """How many records of aborted transactions stand in the topics of results."""
    hidden = 0
    for topic in (market.averages, changelog_topic(market.settings.group_id, market.topic)):
        committed = {(r.partition, r.offset) for r in market.read(topic)}
        hidden += len({(r.partition, r.offset) for r in market.read_all(topic)} - committed)
    return hidden


def test_a_zombie_is_fenced_and_ends_with_an_error(make_market: MakeMarket, tmp_path: Path) -> None:
    market = make_market()
    log = tmp_path / "zombie.log"
    with (
        Feeder(market, seed=12) as feeder,
        command(market.settings, log) as zombie,
    ):
        wait_for(lambda: taken(market) > 500)
        zombie.send_signal(signal.SIGSTOP)
        stood = taken(market)
        with command(market.settings) as other:
            # The group waits out the zombie's session before it gives its partitions away.
            wait_for(lambda: taken(market) > stood + 1_000)
            zombie.send_signal(signal.SIGCONT)
            assert zombie.wait(WAIT_S) == 1
            feeder.stop()
            market.wait_until_all_is_taken()
            end_of(market, other)
    assert "another worker has taken this one's partitions over" in log.read_text("utf-8")
    assert_exact(market)


def test_one_worker_becomes_three_and_one_again_under_load(make_market: MakeMarket) -> None:
    market = make_market(topic=TopicSettings(partitions=3))
    with contextlib.ExitStack() as stack:
        feeder = stack.enter_context(Feeder(market, seed=13))
        first = stack.enter_context(command(market.settings))
        wait_for(lambda: taken(market) > 0)
        others = stack.enter_context(command(market.settings, WORKERS="2"))
        wait_for(lambda: members(market) == 3)
        # One of the two dies, and its supervisor starts it again.
        before = psutil.Process(others.pid).children()
        before[0].kill()
        wait_for(lambda: bool(set(psutil.Process(others.pid).children()) - set(before)))
        # The group has four members until the dead one's session is over.
        wait_for(lambda: members(market) == 3)
        stood = taken(market)
        wait_for(lambda: taken(market) > stood + 1_000)
        others.send_signal(signal.SIGTERM)
        assert others.wait(WAIT_S) == 0
        feeder.stop()
        market.wait_until_all_is_taken()
        end_of(market, first)
    assert_exact(market)


def test_a_broker_restarted_under_load(
    make_market: MakeMarket, broken_stack: StackEndpoints, tmp_path: Path
) -> None:
    market = make_market()
    with (
        Feeder(market, seed=14) as feeder,
        command(market.settings, tmp_path / "worker.log") as process,
    ):
        for _ in range(2):
            stood = taken(market)
            wait_for(lambda: taken(market) > stood + 500)  # noqa: B023 - called at once
            with away(broken_stack, "kafka"):
                pass
        stood = taken(market)
        wait_for(lambda: taken(market) > stood + 500)
        feeder.stop()
        market.wait_until_all_is_taken()
        end_of(market, process)
    assert_exact(market)


def test_a_sink_that_is_slow_slows_reading_down_and_costs_nothing(
    make_market: MakeMarket, broken_stack: StackEndpoints, tmp_path: Path
) -> None:
    """The broker takes 2 KB/s of what the agg-producer writes: some eight results."""
    market = make_market()
    log = tmp_path / "worker.log"

    def behind() -> int:
        with TopicReader(market.kafka) as reader:
            ends = sum(span.end for span in reader.spans([market.topic]).values())
        return ends - taken(market)

    with command(market.settings, log) as process:
        with quota(broken_stack, "agg-producer", 2_000), Feeder(market, seed=19):
            wait_for(lambda: taken(market) > 0)
            wait_for(lambda: behind() > 2_000)
            stood = taken(market)
            wait_for(lambda: taken(market) > stood)
            assert members(market) == 1
        market.wait_until_all_is_taken()
        end_of(market, process)
    told = log.read_text("utf-8")
    assert "partitions lost" not in told
    assert "beginning anew" not in told
    assert_exact(market)


@contextlib.contextmanager
def quota(stack: StackEndpoints, client_id: str, bytes_per_s: int) -> Iterator[None]:
    """How much a client may produce."""
    _change_quota(stack, client_id, "--add-config", f"producer_byte_rate={bytes_per_s}")
    try:
        yield
    finally:
        _change_quota(stack, client_id, "--delete-config", "producer_byte_rate")


def _change_quota(stack: StackEndpoints, client_id: str, *change: str) -> None:
    jars = class_path(ArtifactCache(default_cache_dir()).files("kafka"))
    tool = java_command(128, "-cp", jars, "kafka.admin.ConfigCommand")
    where = ("--bootstrap-server", stack.bootstrap_servers)
    whose = ("--entity-type", "clients", "--entity-name", client_id)
    subprocess.run([*tool, *where, "--alter", *whose, *change], check=True, timeout=WAIT_S)


def test_a_stale_generation_alone_is_fenced(make_market: MakeMarket) -> None:
    """The transactional id is nobody else's: what refuses the old member is the group."""
    market = make_market()
    market.send(*unruly_trades(market, 100, seed=20))
    offset = [TopicPartition(market.topic, 0, 1)]
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        kafka = market.kafka
        writer = GroupTransactionWriter(kafka, Metrics(CollectorRegistry()), "test", market.name)
        assert writer.start(stop)
        group = f"stale-{market.name}"
        first, second = (stack.enter_context(market.consumer(group)) for _ in range(2))
        first.subscribe([market.topic])

        def assigned() -> bool:
            first.poll(0.05)
            return bool(first.assignment())

        wait_for(assigned)
        stale = first.consumer_group_metadata()
        second.subscribe([market.topic])

        def shared() -> bool:
            first.poll(0.05)
            second.poll(0.05)
            return bool(first.assignment()) and bool(second.assignment())

        wait_for(shared)
        with pytest.raises(CommitUncertainError):
            writer.send_offsets(_Member(stale), offset, lambda: True)  # type: ignore[arg-type]  # what is asked of a consumer
        writer.abandon()
        # The same writer, for the same member in its present generation.
        writer.send_offsets(first, offset, lambda: True)
        writer.commit(lambda: True)
        [committed] = first.committed(offset, timeout=WAIT_S)
        assert committed.offset == 1


class _Member:
    """A consumer of a generation that is over."""

    def __init__(self, metadata: object) -> None:
        self._metadata = metadata

    def consumer_group_metadata(self) -> object:
        return self._metadata


def test_a_registry_that_is_away_at_the_start_and_when_a_new_schema_comes(
    make_market: MakeMarket, broken_stack: StackEndpoints
) -> None:
    market = make_market()
    trades = unruly_trades(market, 3_000, seed=15)
    evolved: dict[str, Any] = copy.deepcopy(RAW_TRADE)
    evolved["fields"].append({"name": "venue", "type": ["null", "string"], "default": None})
    new_id = market.registry.register_value(market.topic, evolved)
    assert new_id != market.schema_id
    market.send(*trades[:1_000])
    with contextlib.ExitStack() as stack:
        with away(broken_stack, "schema-registry"):
            aggregator = stack.enter_context(RunningAggregator(market.settings))
            wait_for(lambda: "schema registry" in (aggregator.health.not_ready() or ""))
        wait_for(lambda: taken(market) > 0)
        market.wait_until_all_is_taken()
        with away(broken_stack, "schema-registry"):
            market.encoder = RecordEncoder(evolved, new_id)
            market.send(*trades[1_000:2_000])
            wait_for(aggregator.is_paused)
            assert aggregator.has_partitions()
        market.send(*trades[2_000:])
        market.wait_until_all_is_taken()
    assert_exact(market)


def test_everything_bad_at_once_with_a_kill_in_between(make_market: MakeMarket) -> None:
    """Poison, unknown ids, an evolved schema, repeats, disorder, and a clock a year ahead."""
    market = make_market()
    trades: list[Any] = list(unruly_trades(market, 12_000, seed=16))
    evolved: dict[str, Any] = copy.deepcopy(RAW_TRADE)
    evolved["fields"].append({"name": "venue", "type": ["null", "string"], "default": None})
    encoder = RecordEncoder(evolved, market.registry.register_value(market.topic, evolved))
    good = market.encoder.encode(market.trade("I1", 10**6, 0))
    key = f"{market.name}-I1".encode()
    bad: list[tuple[bytes, bytes | None]] = [
        (key, b""),
        (key, os.urandom(100)),
        (key, None),
        (key, good[:-3]),
        (key, good + b"\0"),
        (b"else", good),
        (key, b"\0\x7f\xff\xff\xff" + good[5:]),
        (key, market.encoder.encode(market.trade("I1", 10**6, 0, price=float("nan")))),
    ]
    for number, item in enumerate(bad * 3):
        trades.insert(450 * number, item)
    for number in range(1, 20):
        ahead = market.trade("I2", 10**6 + number, number * 50_000)
        ahead["timestamp"] += _YEAR_MS
        trades.insert(500 * number, ahead)
        newer = market.trade("I3", 10**6 + number, number * 50_000, venue="x")
        trades.insert(510 * number, (newer["instrument_name"].encode(), encoder.encode(newer)))
    market.send(*trades[:6_000])
    with command(market.settings, CONSUME__BATCH_RECORDS="100") as process:
        wait_for(lambda: taken(market) > 1_000)
        process.kill()
    market.send(*trades[6_000:])
    with command(market.settings) as process:
        market.wait_until_all_is_taken()
        end_of(market, process)
    wanted = assert_exact(market)
    assert len(wanted.dead) == 3 * len(bad)
    assert list(wanted.late.values()).count("future") >= 19
    assert list(wanted.late.values()).count("late") > 0
    assert wanted.repeats > 0


def test_a_clock_a_year_ahead_makes_all_that_follows_late_and_nothing_wrong(
    make_market: MakeMarket,
) -> None:
    market = make_market()
    trades = unruly_trades(market, 2_000, seed=17)
    ahead = market.trade("I1", 10**6, _YEAR_MS)  # receipt too: there is no telling it is wrong
    market.send(*trades[:1_000], ahead, *trades[1_000:])
    with command(market.settings) as process:
        market.wait_until_all_is_taken()
        end_of(market, process)
    wanted = assert_exact(market)
    assert list(wanted.late.values()).count("late") > 300


def test_a_silent_topic_shows_its_windows_once_over_kills(make_market: MakeMarket) -> None:
    market = make_market(window=WindowSettings(period=PERIOD_S, idle_timeout=0.2, retention=60))
    key = f"{market.name}-I1|{START_MS}".encode()
    market.send(market.trade("I1", 1, 0), market.trade("I1", 2, 1_000))
    with command(market.settings, WINDOW__IDLE_TIMEOUT="0.2") as process:
        wait_for(lambda: len(market.results().get(key, [])) == 1)
        process.kill()
    # Its successor knows that the window was shown, and shows it again when it has changed.
    with command(market.settings, WINDOW__IDLE_TIMEOUT="0.2") as process:
        market.send(market.trade("I1", 3, 59_000))
        wait_for(lambda: len(market.results()[key]) == 2)
        process.kill()
    with command(market.settings, WINDOW__IDLE_TIMEOUT="0.2") as process:
        market.send(market.trade("I1", 4, 130_000))
        wait_for(lambda: len(market.results()) == 2)
        end_of(market, process)
    shown = market.results()[key]
    assert [(a["closed_by"], a["revision"], a["trade_count"]) for a in shown] == [
        ("idle", 0, 2),
        ("idle", 1, 3),
    ]
    Recomputed(market).compare(key, shown[-1])


def test_at_least_once_loses_nothing_when_it_is_killed(make_market: MakeMarket) -> None:
    market = make_market(guarantee="at_least_once")
    with Feeder(market, seed=18):
        for _ in range(3):
            before = taken(market)
            with command(market.settings, GUARANTEE="at_least_once") as process:
                wait_for(lambda: taken(market) > before + 700)  # noqa: B023 - called at once
                process.kill()
    with command(market.settings, GUARANTEE="at_least_once") as process:
        market.wait_until_all_is_taken()
        end_of(market, process)
    wanted, results = Recomputed(market), market.results()
    assert set(results) == wanted.closed
    for name, found in results.items():
        assert name is not None
        wanted.compare(name, found[-1])
    assert set(market.places(late_topic(market.topic))) == set(wanted.late)
    assert set(market.places(dead_letter_topic(market.topic))) == wanted.dead
