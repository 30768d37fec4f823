"""The agg-producer on a real Kafka and registry, checked by a recomputation record by record."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from market import (
    PERIOD_S,
    START_MS,
    WAIT_S,
    Market,
    Recomputed,
    RunningAggregator,
    assert_exact,
    command,
    members,
    recomputed_families,
    unruly_trades,
    wait_for,
)

from kstream_agg.aggregate.settings import EwmaSettings, WindowSettings
from kstream_agg.core.errors import TopicMismatchError
from kstream_agg.core.metrics import RECORDS_REPEATED
from kstream_agg.core.names import dead_letter_topic
from kstream_agg.core.settings import (
    KafkaSettings,
    RegistrySettings,
    TelemetrySettings,
    TopicSettings,
)
from kstream_agg.core.telemetry import Telemetry, is_sampled
from kstream_agg.kafka.dlq import header_value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

MakeMarket = Callable[..., Market]


@pytest.fixture
def make_market(stack: StackEndpoints) -> Iterator[MakeMarket]:
    with contextlib.ExitStack() as open_registries:

        def make(**changes: object) -> Market:
            market = Market(stack, **changes)
            open_registries.enter_context(market.registry)
            return market

        yield make


def test_results_late_records_and_dead_letters_are_exact(make_market: MakeMarket) -> None:
    market = make_market()
    trades: list[Any] = list(unruly_trades(market, 5_000, seed=1))
    good = market.encoder.encode(market.trade("I1", 10**6, 0))
    key = f"{market.name}-I1".encode()
    bad = [(key, b"\0\0\0\0\0"), (key, None), (key, good[:-4]), (key, good + b"\0"), (b"x", good)]
    bad.append((key, b"\0\x7f\xff\xff\xff" + good[5:]))
    for number, record in enumerate(bad):
        trades.insert(700 * number, record)
    market.send(*trades)
    with RunningAggregator(market.settings) as aggregator:
        market.wait_until_all_is_taken()
        assert aggregator.health.problems() == {}
        assert aggregator.health.not_ready() is None
        [repeated] = aggregator.metrics.counter(RECORDS_REPEATED).collect()
    wanted = assert_exact(market)
    assert len(wanted.closed) > 50
    assert {"late", "future"} == set(wanted.late.values())
    assert len(wanted.dead) == len(bad)
    assert repeated.samples[0].value == wanted.repeats > 0
    messages = [
        header_value(record.headers, "error.message")
        for record in market.read(dead_letter_topic(market.topic))
    ]
    assert any("knows no schema" in (message or "") for message in messages)


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_restart_goes_on_exactly_where_it_stood(make_market: MakeMarket, guarantee: str) -> None:
    market = make_market(guarantee=guarantee)
    trades = unruly_trades(market, 3_000, seed=2)
    for part in (trades[:1_000], trades[1_000:1_001], trades[1_001:]):
        market.send(*part)
        with RunningAggregator(market.settings):
            market.wait_until_all_is_taken()
    assert_exact(market)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": WindowSettings(periods=(20, 60, 300), idle_timeout=600, retention=60)},
        {"window": WindowSettings(periods=(60, 100), advance=30, idle_timeout=600, retention=60)},
        {
            "window": WindowSettings(periods=(60, 120), idle_timeout=600, retention=60),
            "ewma": EwmaSettings(form="time", tau=45.0),
        },
        {
            "window": WindowSettings(period=60, idle_timeout=600, retention=60),
            "ewma": EwmaSettings(n=20, start="zero", reset="window"),
        },
    ],
    ids=["several periods", "hopping", "time-decayed", "as the original"],
)
def test_all_kinds_of_windows_and_averages_are_exact_over_a_restart(
    make_market: MakeMarket, changes: dict[str, object]
) -> None:
    market = make_market(**changes)
    trades = unruly_trades(market, 4_000, seed=7)
    for part in (trades[:1_500], trades[1_500:]):
        market.send(*part)
        with RunningAggregator(market.settings):
            market.wait_until_all_is_taken()
    assert min(recomputed_families(market)) > 10


def test_a_channel_counts_as_one_instrument_with_the_originals_numbers(
    make_market: MakeMarket,
) -> None:
    market = make_market(
        group_by="channel",
        topic=TopicSettings(partitions=1),
        ewma=EwmaSettings(n=300, start="zero", reset="window"),
    )
    trades = [market.trade(f"I{n % 3}", n // 3, n * 100) for n in range(2_000)]
    market.send(*trades)
    with RunningAggregator(market.settings):
        market.wait_until_all_is_taken()
    results = market.results()
    channel = market.settings.channels[0]
    assert set(results) == {f"{channel}|{START_MS + n * 60_000}".encode() for n in range(3)}
    ewma = 0.0
    for trade in trades[:600]:
        ewma = 2 / 301 * trade["price"] + (1 - 2 / 301) * ewma
    [first] = results[f"{channel}|{START_MS}".encode()]
    assert first["current"] == pytest.approx(ewma, rel=1e-9)
    assert first["trade_count"] == 600
    assert recomputed_families(market) == [3]


def test_grouping_by_channel_is_refused_where_partitions_would_split_it(
    make_market: MakeMarket,
) -> None:
    market = make_market(group_by="channel")
    with (
        pytest.raises(TopicMismatchError, match="needs a topic of one partition"),
        RunningAggregator(market.settings) as aggregator,
    ):
        wait_for(lambda: not aggregator.is_alive())


def test_members_that_come_and_go_lose_and_double_nothing(make_market: MakeMarket) -> None:
    market = make_market()
    trades = unruly_trades(market, 4_000, seed=3)
    with RunningAggregator(market.settings):
        market.send(*trades[:1_000])
        with RunningAggregator(market.settings) as other:
            for begin in range(1_000, 3_000, 400):
                market.send(*trades[begin : begin + 400])
            wait_for(other.has_partitions)
        market.send(*trades[3_000:])
        market.wait_until_all_is_taken()
    assert_exact(market)


def test_two_workers_share_the_partitions_and_tell_of_both(
    make_market: MakeMarket, tmp_path: Path
) -> None:
    market = make_market()
    trades = unruly_trades(market, 2_000, seed=8)
    log = tmp_path / "workers.log"
    with command(market.settings, log, WORKERS="2") as process:
        wait_for(lambda: members(market) == 2)
        market.send(*trades)
        market.wait_until_all_is_taken()
        started = next(line for line in log.read_text("utf-8").splitlines() if "http_port" in line)
        url = f"http://127.0.0.1:{json.loads(started)['http_port']}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=WAIT_S) as answer:  # noqa: S310 - our own address
            lines = [line for line in answer.read().decode().splitlines() if market.topic in line]
        with urllib.request.urlopen(f"{url}/readyz", timeout=WAIT_S) as answer:  # noqa: S310 - our own address
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    consumed = [line for line in lines if line.startswith("kstream_records_consumed_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in consumed) == len(trades)
    assert sorted(re.findall(r'worker="(\d)"', " ".join(consumed))) == ["0", "1"]
    assert_exact(market)


def test_a_quiet_topic_shows_its_last_window_and_shows_it_again_when_it_changes(
    make_market: MakeMarket,
) -> None:
    market = make_market(window=WindowSettings(period=PERIOD_S, idle_timeout=0.2))
    key = f"{market.name}-I1|{START_MS}".encode()
    with RunningAggregator(market.settings):
        market.send(market.trade("I1", 1, 0), market.trade("I1", 2, 1_000))
        wait_for(lambda: len(market.results().get(key, [])) == 1)
        market.send(market.trade("I1", 3, 59_000))
        wait_for(lambda: len(market.results()[key]) == 2)
        market.send(market.trade("I1", 4, 130_000))
        wait_for(lambda: len(market.results()) == 2)
    shown = market.results()[key]
    # The watermark closes a window that was shown and has not changed: no third record.
    assert [(a["closed_by"], a["revision"], a["trade_count"]) for a in shown] == [
        ("idle", 0, 2),
        ("idle", 1, 3),
    ]
    Recomputed(market).compare(key, shown[-1])


def test_several_channels_have_topics_of_their_own(make_market: MakeMarket) -> None:
    options = make_market()
    futures = make_market()
    settings = options.settings.model_copy(
        update={"channels": (*options.settings.channels, *futures.settings.channels)}
    )
    futures.settings = futures.settings.model_copy(update={"group_id": settings.group_id})
    options.send(*unruly_trades(options, 800, seed=4))
    futures.send(*unruly_trades(futures, 800, seed=5))
    with RunningAggregator(settings):
        options.wait_until_all_is_taken()
        futures.wait_until_all_is_taken()
    assert_exact(options)
    assert_exact(futures)


def test_spans_are_children_of_the_producers_and_results_carry_them(
    stack: StackEndpoints, make_market: MakeMarket
) -> None:
    trace_id, span_id = uuid4().hex, uuid4().hex[:16]
    tracing = TelemetrySettings(
        exporter="zipkin", endpoint=f"{stack.zipkin_url}/api/v2/spans", sample_ratio=0.0
    )
    market = make_market(telemetry=tracing)
    telemetry = Telemetry(tracing, "agg-producer")
    with RunningAggregator(market.settings, telemetry):
        market.send(
            market.trade("I1", 1, 0),
            market.trade("I1", 2, 180_000),
            traceparent=f"00-{trace_id}-{span_id}-01".encode(),
        )
        market.wait_until_all_is_taken()
    telemetry.shutdown()
    [record] = market.read(market.averages)
    traceparent = dict(record.headers)["traceparent"]
    assert traceparent is not None
    assert is_sampled(traceparent)
    assert trace_id in traceparent.decode()

    def spans() -> list[dict[str, Any]]:
        url = f"{stack.zipkin_url}/api/v2/trace/{trace_id}"
        try:
            with urllib.request.urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310 - our own address
                found: list[dict[str, Any]] = json.load(answer)
        except urllib.error.HTTPError:
            return []
        return found

    wait_for(lambda: bool(spans()))
    for span in spans():
        assert span["name"] == "consume_payload"
        assert span["parentId"] == span_id
        assert span["localEndpoint"]["serviceName"] == "agg-producer"


@pytest.mark.parametrize("absent", ["Kafka", "the schema registry"])
def test_it_waits_for_what_is_absent_says_so_and_stops_when_asked(
    make_market: MakeMarket, absent: str
) -> None:
    nowhere = "127.0.0.1:1"
    market = make_market(
        **(
            {"kafka": KafkaSettings(bootstrap_servers=nowhere)}
            if absent == "Kafka"
            else {"registry": RegistrySettings(url=f"http://{nowhere}")}
        )
    )
    with RunningAggregator(market.settings) as aggregator:
        wait_for(lambda: (aggregator.health.not_ready() or "").startswith(f"waiting for {absent}"))
        assert aggregator.health.problems() == {}


def test_the_command_survives_sigkill_exactly_and_ends_cleanly_on_sigterm(
    make_market: MakeMarket,
) -> None:
    market = make_market()
    trades = unruly_trades(market, 6_000, seed=6)
    market.send(*trades[:3_000])
    for part in (trades[3_000:4_500], trades[4_500:]):
        with command(market.settings) as process:
            wait_for(lambda: bool(market.committed()))
            market.send(*part)
            process.send_signal(signal.SIGKILL)
    with command(market.settings) as process:
        market.wait_until_all_is_taken()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert_exact(market)
