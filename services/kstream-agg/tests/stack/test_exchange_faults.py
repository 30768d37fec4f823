"""The raw-producer against an adversary: every trade exactly once, whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.metrics import SESSION_CONNECTS
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.scenario import Scenario
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.deribit.testing import Market, ProducerThread, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack


@pytest.fixture
def market(stack: StackEndpoints) -> Iterator[Market]:
    made = Market(stack.bootstrap_servers, stack.registry_url)
    yield made
    made.remove()


@pytest.mark.parametrize("seed", [1, 2])
def test_drops_repeats_reordering_and_disconnects_leave_every_trade_once(
    market: Market, seed: int
) -> None:
    recording = generate_trades(seed=seed, count=20_000, instruments=market.instruments)
    expected = {(trade["instrument_name"], trade["trade_seq"]) for trade in recording.trades}
    scenario = Scenario(
        seed=seed,
        drop=0.01,
        repeat=0.01,
        reorder=0.01,
        disconnect_every=30,
        disconnects=10,
        missed_trades=600,
    )
    with (
        simulator_in_thread(recording, scenario=scenario, frame_trades=20) as simulator,
        ProducerThread(market.settings(simulator.websocket_url)) as producer,
    ):
        simulator.wait_played(timeout_s=120)
        delivered = {"topic": market.topic}
        wait_for(
            lambda: producer.value("kstream_records_delivered_total", **delivered) >= len(expected),
            f"{len(expected)} trades in the topic",
        )
    assert producer.failure is None
    content = market.read()
    assert content.differences(expected) == ""
    assert content.backfilled > 0
    assert simulator.adversary.cuts == 10
    assert producer.value(f"{SESSION_CONNECTS.name}_total") > 10
    assert market.count(f"{market.topic}-gaps") == 0
