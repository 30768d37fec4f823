"""The raw-producer against an adversary: every trade exactly once, whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from exchange import numbers, play

from kstream_agg.core.errors import DeliveryError
from kstream_agg.core.metrics import SESSION_CONNECTS
from kstream_agg.core.names import channel_topic
from kstream_agg.deribit.recording import Recording, read_recording, shipped_recording_path
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.instruments import parse_instrument
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
    scenario = Scenario(
        seed=seed,
        drop=0.01,
        repeat=0.01,
        reorder=0.01,
        disconnect_every=30,
        disconnects=10,
        missed_trades=600,
    )
    played = play(market, recording, scenario)
    assert market.read().backfilled > 0
    assert played.simulator.adversary.cuts == 10
    assert played.producer.value(f"{SESSION_CONNECTS.name}_total") > 10
    assert market.count(f"{market.topic}-gaps") == 0


@pytest.mark.faults
def test_killed_at_random_moments_it_leaves_no_hole_and_no_double(
    stack: StackEndpoints, market: Market
) -> None:
    recording = generate_trades(seed=3, count=30_000, instruments=market.instruments)
    rng = random.Random(3)  # noqa: S311 - moments, no secrets
    # It goes on after its end: trades happen whether the producer is there or not.
    with simulator_in_thread(recording, loop=500, frame_trades=10, history=400_000) as simulator:
        for _ in range(10):
            with producer_process(stack, market, simulator.websocket_url) as process:
                before = market.count(market.topic) if _exists(market) else 0
                wait_for(
                    lambda before=before: _exists(market) and market.count(market.topic) > before,
                    "trades of this start",
                )
                threading.Event().wait(rng.random())
                process.kill()
        with producer_process(stack, market, simulator.websocket_url) as process:
            happened = simulator.happened()
            assert len(happened) > 30_000
            # What it has not yet fetched when it is asked to end, its next start would fetch.
            wait_for(lambda: _is_whole(market, happened), "all trades, without a hole")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    content = market.read()
    assert content.differences(content.without_holes()) == ""
    assert market.count(f"{market.topic}-gaps") == 0


def _exists(market: Market) -> bool:
    return market.topic in market.topics()


def _is_whole(market: Market, happened: set[tuple[str, int]]) -> bool:
    content = market.read()
    return happened <= content.trades.keys() and not content.differences(content.without_holes())


@contextlib.contextmanager
def producer_process(
    stack: StackEndpoints, market: Market, url: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`kstream-agg raw-producer` as a user starts it."""
    environment = {
        **{name: value for name, value in os.environ.items() if "KSTREAM__" not in name},
        "KSTREAM__KAFKA__BOOTSTRAP_SERVERS": stack.bootstrap_servers,
        "KSTREAM__REGISTRY__URL": stack.registry_url,
        "KSTREAM__CHANNELS": market.channel,
        "KSTREAM__TRANSACTIONAL_ID": market.currency,
        "KSTREAM__EXCHANGE__URL": url,
        "KSTREAM__HISTORY__COMPARE_EVERY_S": "1",
        "KSTREAM__HISTORY__REQUESTS_PER_S": "500",
        "KSTREAM__LOG__LEVEL": "warning",
    }
    command = [sys.executable, "-m", "kstream_agg", "raw-producer"]
    process = subprocess.Popen(command, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_second_producer_takes_over_and_the_first_one_ends_with_an_error(market: Market) -> None:
    recording = generate_trades(seed=4, count=3_000, instruments=market.instruments)
    # The loop goes on for ever: an idle producer would not notice that it has been replaced.
    with simulator_in_thread(recording, loop=100) as simulator:
        settings = market.settings(simulator.websocket_url)
        with ProducerThread(settings) as first:
            wait_for(lambda: _exists(market) and market.count(market.topic) > 0, "trades")
            with ProducerThread(settings) as second:
                first.join()
                assert isinstance(first.failure, DeliveryError)
                assert "taken over the transactional id" in str(first.failure)
                simulator.wait_played(timeout_s=60)
                before = market.count(market.topic)
                wait_for(lambda: market.count(market.topic) > before, "the second one's trades")
    assert second.failure is None
    content = market.read()
    assert content.differences(content.without_holes()) == ""


def test_everything_rare_passes_without_a_dead_letter(market: Market) -> None:
    recording = generate_trades(seed=5, count=4_000, instruments=market.instruments[:40])
    scenario = Scenario(
        seed=5,
        exponents=0.3,
        unknown_fields=0.1,
        unknown_values=0.1,
        late_liquidations=0.1,
        combos=0.05,
        block_trades=0.1,
        decimal_strikes=0.05,
        delay=0.01,
        delay_s=0.01,
        split=0.1,
        merge=0.1,
        drop=0.02,
        clock_skew_ms=90_000,
    )
    combos = f"trades.option_combo.{market.currency}.100ms"
    with (
        simulator_in_thread(recording, scenario=scenario, frame_trades=20) as simulator,
        ProducerThread(
            market.settings(simulator.websocket_url, channels=(market.channel, combos))
        ) as producer,
    ):
        played = simulator.recording.trades
        simulator.wait_played(timeout_s=60)
        wait_for(
            lambda: (
                len(market.read().trades) + len(market.read(channel_topic(combos)).trades)
                >= len(played)
            ),
            "all trades",
        )
    parents = numbers(trade for trade in played if "legs" in trade)
    others = numbers(trade for trade in played if "legs" not in trade)
    assert any("d625" in name for name, _ in others)
    assert producer.failure is None
    assert market.read().differences(others) == ""
    assert market.read(channel_topic(combos)).differences(parents) == ""
    assert market.count(f"{market.topic}-dlq") == 0


def test_a_history_that_fails_leaks_and_is_slow_is_outlasted(market: Market) -> None:
    recording = generate_trades(seed=6, count=8_000, instruments=market.instruments[:50])
    scenario = Scenario(
        seed=6,
        drop=0.05,
        disconnect_every=40,
        disconnects=5,
        missed_trades=500,
        refuse_handshakes=0.3,
        too_many_requests=0.05,
        rest_slow=0.2,
        rest_slow_s=0.2,
        rest_empty=0.1,
        rest_fail=0.2,
        rest_limit=0.02,
        rest_leak=0.3,
    )
    play(market, recording, scenario)
    assert market.count(f"{market.topic}-gaps") == 0


def test_what_the_exchange_does_not_give_is_named_as_a_gap(market: Market) -> None:
    recording = generate_trades(seed=7, count=2_000, instruments=market.instruments[:5])
    kept = [trade for trade in recording.trades if trade["trade_seq"] not in {50, 51, 70}]
    lost = len(recording.trades) - len(kept)
    with (
        simulator_in_thread(kept) as simulator,
        ProducerThread(
            market.settings(simulator.websocket_url, history={"hole_attempts": 2})
        ) as producer,
    ):
        wait_for(
            lambda: producer.value("kstream_source_gaps_total", topic=market.topic) >= lost,
            "all gaps",
        )
    assert producer.failure is None
    assert market.read().differences(numbers(kept)) == ""
    assert market.count(f"{market.topic}-gaps") == 10  # two runs of five instruments


def recorded(name: str) -> Recording:
    """A recording that lies beside the checkout; where it does not, one like it."""
    folder = Path(
        os.environ.get("KSTREAM_TEST_DATA") or Path(__file__).parents[5] / "shared" / "data"
    )
    if (folder / name).is_file():
        return read_recording(folder / name)
    if shipped_recording_path().name == name:
        return read_recording(shipped_recording_path())
    return generate_trades(seed=19, count=60_000)


SHARED = ("option_trades_btc_2019.csv.gz", "trades_btc_2026.csv.gz")


@pytest.mark.parametrize("name", SHARED)
def test_a_recorded_session_passes_without_a_dead_letter(stack: StackEndpoints, name: str) -> None:
    recording = recorded(name)
    kinds = {parse_instrument(instrument).kind: instrument for instrument in recording.instruments}
    market = Market(stack.bootstrap_servers, stack.registry_url)
    # The recordings are BTC's: topics named by the test's market keep others' apart.
    renamed = [
        {**trade, "instrument_name": trade["instrument_name"].replace("BTC", market.currency, 1)}
        for trade in recording.trades
    ]
    channels = [f"trades.{kind}.{market.currency}.100ms" for kind in sorted(kinds)]
    try:
        with (
            simulator_in_thread(renamed) as simulator,
            ProducerThread(
                market.settings(simulator.websocket_url, channels=tuple(channels))
            ) as producer,
        ):
            simulator.wait_played(timeout_s=120)
        assert producer.failure is None
        found: set[tuple[str, int]] = set()
        for channel in channels:
            topic = channel_topic(channel)
            found |= market.read(topic).trades.keys()
            assert market.count(f"{topic}-dlq") == 0
        assert found == numbers(simulator.recording.trades)
    finally:
        market.remove()
