"""A broker that is away under load: memory stays bounded, and after it nothing is missing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.metrics import RECORDS_DELIVERED
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.deribit.testing import Market, wait_for
from kstream_agg.stack import control
from processes import Service

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

TRADES_PER_S = 1_000
MAX_RSS_MB = 200


@pytest.mark.parametrize(
    "minutes",
    [
        pytest.param(2, marks=[pytest.mark.faults, pytest.mark.timeout(2000)]),
        pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(2700)]),
    ],
)
def test_memory_is_bounded_and_nothing_is_lost_while_the_broker_is_away(
    broken_stack: StackEndpoints, tmp_path: Path, minutes: int
) -> None:
    market = Market(broken_stack.bootstrap_servers, broken_stack.registry_url)
    recording = generate_trades(seed=12, count=5_000, instruments=market.instruments)
    with (
        simulator_in_thread(
            recording, loop=TRADES_PER_S, frame_trades=10, history=2_000_000
        ) as simulator,
        _producer(broken_stack, market, simulator.websocket_url, tmp_path) as producer,
    ):
        rss: list[int] = []

        def delivered() -> int:
            rss.append(producer.process.memory_info().rss)
            return producer.counter(RECORDS_DELIVERED.name, market.topic)

        wait_for(lambda: delivered() > 5_000, "the load")
        before = rss[-1]
        control.suspend(broken_stack.data_dir, "kafka")
        tick = threading.Event()
        for _ in range(minutes * 60):
            tick.wait(1.0)
            rss.append(producer.process.memory_info().rss)
        away = max(rss)
        control.resume(broken_stack.data_dir, "kafka")
        happened = simulator.happened()
        # Counted, not read: to read a topic of millions again and again would take the time that
        # the simulator in this process needs.
        wait_for(lambda: delivered() >= len(happened), "as many trades as happened", 1200)
        # What it has not yet fetched when it is asked to end, its next start would fetch.
        wait_for(lambda: _is_whole(market, happened), "all trades, without a hole", 300)
        producer.process.terminate()
        assert producer.process.wait(60) == 0
    figures = (f"{value / 1e6:.0f}" for value in (before, away, max(rss)))
    print("RSS in MB before, while Kafka was away, and at most:", *figures)  # noqa: T201 - figures to be read
    assert max(rss) / 1e6 <= MAX_RSS_MB
    content = market.read()
    assert content.differences(content.without_holes()) == ""


def _is_whole(market: Market, happened: set[tuple[str, int]]) -> bool:
    content = market.read()
    return happened <= content.trades.keys() and not content.differences(content.without_holes())


def _producer(stack: StackEndpoints, market: Market, url: str, folder: Path) -> Service:
    """`kstream-agg raw-producer` in a process of its own."""
    return Service(
        ("raw-producer",),
        {},
        folder,
        {
            "KAFKA__BOOTSTRAP_SERVERS": stack.bootstrap_servers,
            "REGISTRY__URL": stack.registry_url,
            "CHANNELS": market.channel,
            "TRANSACTIONAL_ID": market.currency,
            "EXCHANGE__URL": url,
            "EXCHANGE__COMPRESSION": "false",
            "HISTORY__COMPARE_EVERY_S": "5",
            "HISTORY__REQUESTS_PER_S": "100",
        },
    )
