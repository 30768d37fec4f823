"""Ten million trades of 2,000 instruments: what the agg-producer holds does not grow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import psutil
import pytest
from confluent_kafka import Producer
from market import WAIT_S, Market, command, end_of, taken

from kstream_agg.core.settings import TopicSettings
from kstream_agg.deribit.trade_encoder import TradeEncoder
from kstream_agg.deribit.trades import Trade
from kstream_agg.kafka.writer import PRODUCER_DEFAULTS

if TYPE_CHECKING:
    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2_400)]

TRADES: Final = 10_000_000
EARLY: Final = 3_000_000
INSTRUMENTS: Final = 2_000
GAP_MS: Final = 36  # 100 hours of event time
MOST_GROWTH: Final = 1.15


def fill(market: Market) -> None:
    """Trades in the order of their times; an instrument's come one after the other in turns."""
    encoder = TradeEncoder(market.schema_id)
    producer = Producer(PRODUCER_DEFAULTS | market.kafka.client_config())
    names = [f"{market.name}-{number}-C" for number in range(INSTRUMENTS)]
    for number in range(TRADES):
        at = 1_700_000_000_000 + number * GAP_MS
        name = names[number * 7 % INSTRUMENTS]
        trade = Trade(
            instrument_name=name,
            trade_seq=number // INSTRUMENTS + 1,
            trade_id=str(number),
            timestamp=at,
            direction="buy",
            price=1.0 + number % 101 / 8,
            amount=0.5 + number % 3,
            tick_direction=0,
        )
        value = encoder.encode(trade, encoder.receipt(at + 5, "stream"))
        while True:
            try:
                producer.produce(market.topic, value, name.encode())
            except BufferError:
                producer.poll(0.1)
            else:
                break
    assert producer.flush(WAIT_S) == 0


def test_resident_memory_is_flat_over_ten_million_trades(broken_stack: StackEndpoints) -> None:
    market = Market(broken_stack, topic=TopicSettings(partitions=4))
    with market.registry:
        fill(market)
        with command(
            market.settings,
            WINDOW__PERIOD="5min",
            WINDOW__RETENTION="12h",
            CONSUME__BATCH_RECORDS="10000",
            CONSUME__COMMIT_INTERVAL_S="1",
        ) as process:
            watched = psutil.Process(process.pid)
            early = peak = 0
            began = time.monotonic()
            while (count := taken(market)) < TRADES:
                assert process.poll() is None, "it has ended"
                peak = max(peak, watched.memory_info().rss)
                if not early and count >= EARLY:
                    early = peak
            seconds = time.monotonic() - began
            end_of(market, process)
    print(  # noqa: T201 - the figures, with `pytest -s`
        f"resident: {early / 1e6:.0f} MB at the highest to {EARLY:,} trades, "
        f"{peak / 1e6:.0f} MB to {TRADES:,}; {seconds:.0f} s"
    )
    assert 0 < peak <= MOST_GROWTH * early
