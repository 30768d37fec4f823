"""One channel of all currencies: each is compared with the history for itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from exchange import numbers, play

from kstream_agg.cli.main import cli
from kstream_agg.core.names import channel_topic
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.scenario import Scenario
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.deribit.testing import Market, play_unheard
from kstream_agg.kafka.cluster import KafkaCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

CHANNEL = "trades.option.any.100ms"
TOPIC = channel_topic(CHANNEL)
# Inverse ones of two coins, and linear ones, which are listed under USDC.
INSTRUMENTS = [
    f"{base}-27MAR26-{strike}-{side}"
    for base in ("BTC", "ETH", "BTC_USDC", "SOL_USDC")
    for strike in (1_000, 2_000, 3_000)
    for side in "CP"
]


@pytest.fixture
def market(stack: StackEndpoints) -> Iterator[Market]:
    made = Market(stack.bootstrap_servers, stack.registry_url)
    made.channel, made.topic = CHANNEL, TOPIC
    yield made
    cluster = KafkaCluster(made.kafka, "test")
    cluster.delete_topics([name for name in cluster.topics() if name.startswith(TOPIC)])


def test_trades_of_every_currency_are_written_once_whatever_is_lost(market: Market) -> None:
    recording = generate_trades(seed=31, count=8_000, instruments=INSTRUMENTS)
    scenario = Scenario(
        seed=31,
        drop=0.05,
        reorder=0.02,
        disconnect_every=60,
        disconnects=4,
        missed_trades=500,
        rest_empty=0.2,
        rest_fail=0.1,
        rest_leak=0.2,
    )
    play(market, recording, scenario)
    assert market.read().backfilled > 500
    assert market.count(f"{TOPIC}-gaps") == 0


def test_a_period_of_all_currencies_is_fetched(market: Market) -> None:
    recording = generate_trades(seed=32, count=2_000, instruments=INSTRUMENTS)
    begin, end = (recording.trades[place]["timestamp"] for place in (0, -1))
    with simulator_in_thread(recording) as simulator:
        play_unheard(simulator, market)
        variables = {
            "KAFKA__BOOTSTRAP_SERVERS": market.kafka.bootstrap_servers,
            "REGISTRY__URL": market.registry.url,
            "CHANNELS": CHANNEL,
            "TRANSACTIONAL_ID": market.currency,
            "EXCHANGE__URL": simulator.websocket_url,
            "HISTORY__REQUESTS_PER_S": "500",
        }
        environment = {f"KSTREAM__{name}": value for name, value in variables.items()}
        times = [datetime.fromtimestamp(ms / 1000, UTC).isoformat() for ms in (begin, end)]
        period = ["--from", times[0], "--to", times[1]]
        result = CliRunner(env=environment).invoke(
            cli, ["backfill", "--alone", "--channel", CHANNEL, *period]
        )
    assert result.exit_code == 0, result.output
    assert market.read().differences(numbers(recording.trades)) == ""
