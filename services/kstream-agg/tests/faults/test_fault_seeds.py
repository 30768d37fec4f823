"""A recorded session of 200,000 trades against an adversary: every trade exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from exchange import play

from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.scenario import Scenario
from kstream_agg.deribit.testing import Market

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

TRADES = 200_000
DISCONNECTS = 50


@pytest.fixture
def market(broken_stack: StackEndpoints) -> Iterator[Market]:
    made = Market(broken_stack.bootstrap_servers, broken_stack.registry_url, instruments=300)
    yield made
    made.remove()


@pytest.mark.parametrize("seed", range(1, 21))
def test_every_trade_is_written_once_and_in_order_unless_marked(market: Market, seed: int) -> None:
    recording = generate_trades(seed=seed, count=TRADES, instruments=market.instruments)
    scenario = Scenario(
        seed=seed,
        drop=0.01,
        repeat=0.01,
        reorder=0.01,
        disconnect_every=60,
        disconnects=DISCONNECTS,
        missed_trades=1_000,
    )
    played = play(market, recording, scenario, within_s=300)
    assert played.simulator.adversary.cuts == DISCONNECTS
    assert market.count(f"{market.topic}-gaps") == 0
    assert market.count(f"{market.topic}-dlq") == 0


def test_a_connection_that_falls_silent_is_found_out_by_its_missing_heartbeats(
    market: Market,
) -> None:
    recording = generate_trades(seed=30, count=20_000, instruments=market.instruments)
    scenario = Scenario(
        seed=30,
        disconnect_every=100,
        disconnects=1,
        disconnect_kinds=("silent",),
        missed_trades=2_000,
        maintenance_after=400,
        maintenance_s=2.0,
    )
    played = play(market, recording, scenario)
    assert played.simulator.adversary.cuts == 1
