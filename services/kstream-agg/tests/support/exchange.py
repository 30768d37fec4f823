"""Playing a recording against an adversary, until the raw-producer has written all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kstream_agg.core.metrics import RECORDS_DELIVERED
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.deribit.testing import ProducerThread, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.deribit.recording import Recording
    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.scenario import Scenario
    from kstream_agg.deribit.simulator import SimulatorThread
    from kstream_agg.deribit.testing import Market

FRAME_TRADES = 20


@dataclass(frozen=True)
class Played:
    """What it was played by, and what took it; both have ended."""

    simulator: SimulatorThread
    producer: ProducerThread


def numbers(trades: Iterable[WireTrade]) -> set[tuple[str, int]]:
    """By what a trade is told from others: instrument and `trade_seq`."""
    return {(trade["instrument_name"], trade["trade_seq"]) for trade in trades}


def play(
    market: Market, recording: Recording, scenario: Scenario, *, within_s: float = 120.0
) -> Played:
    """Play all of a recording; the market's topic then holds each of its trades once.

    Args:
        market: Where it is written.
        recording: What happens.
        scenario: What goes wrong.
        within_s: How long playing may take, in seconds.

    Raises:
        AssertionError: A trade is missing, there twice or in the wrong place.
    """
    expected = numbers(recording.trades)
    with (
        simulator_in_thread(recording, scenario=scenario, frame_trades=FRAME_TRADES) as simulator,
        ProducerThread(market.settings(simulator.websocket_url)) as producer,
    ):
        simulator.wait_played(timeout_s=within_s)
        name = f"{RECORDS_DELIVERED.name}_total"
        wait_for(
            lambda: producer.value(name, topic=market.topic) >= len(expected),
            f"{len(expected)} trades in the topic",
        )
    assert producer.failure is None
    assert market.read().differences(expected) == ""
    return Played(simulator, producer)
