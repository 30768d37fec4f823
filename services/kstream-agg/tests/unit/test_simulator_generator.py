"""Generated trades keep what the exchange promises of its trades."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from kstream_agg.deribit.recording import tick_direction
from kstream_agg.deribit.simulation.generator import DEFAULT_INSTRUMENTS, generate_trades
from kstream_agg.deribit.simulation.instruments import parse_instrument


def test_same_seed_same_trades() -> None:
    first = generate_trades(seed=7, count=500)
    assert first == generate_trades(seed=7, count=500)
    assert first.trades != generate_trades(seed=8, count=500).trades


def test_promises_of_the_exchange() -> None:
    trades = generate_trades(seed=1, count=5000).trades
    assert len(trades) == 5000
    assert len({trade["trade_id"] for trade in trades}) == 5000
    times = [trade["timestamp"] for trade in trades]
    assert times == sorted(times)
    assert sum(one == two for one, two in pairwise(times)) > 1500
    by_instrument = defaultdict(list)
    for trade in trades:
        by_instrument[trade["instrument_name"]].append(trade)
    assert set(by_instrument) == set(DEFAULT_INSTRUMENTS)
    for name, own in by_instrument.items():
        assert [trade["trade_seq"] for trade in own] == list(range(1, len(own) + 1))
        assert all(("iv" in trade) == (parse_instrument(name).kind == "option") for trade in own)
        assert all(
            two["tick_direction"]
            == tick_direction(two["price"], (one["price"], one["tick_direction"]))
            for one, two in pairwise(own)
        )


def test_ids_of_other_currencies_carry_a_prefix() -> None:
    (trade,) = generate_trades(seed=1, count=1, instruments=["ETH-PERPETUAL"]).trades
    assert trade["trade_id"].startswith("ETH-")
