"""When a recording's trades happen."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.core.clock import ManualClock
from kstream_agg.deribit.recording import Recording
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.playback import Pace, Playback, TradeLoop
from kstream_agg.deribit.simulation.rpc import Moment

START_MS = 1_790_000_000_000


def trades_at(*offsets_ms: int) -> tuple[dict[str, Any], ...]:
    return Recording.of(
        {
            "trade_id": str(100 + index),
            "instrument_name": "BTC-PERPETUAL",
            "timestamp": START_MS + offset,
            "price": 10.0 + index,
            "amount": 1.0,
            "direction": "buy",
        }
        for index, offset in enumerate(offsets_ms)
    ).trades


class Player:
    """A playback and the clock it is played by."""

    def __init__(self, trades: tuple[dict[str, Any], ...], pace: Pace, *, now_ms: int = 0) -> None:
        self.clock = ManualClock(now_ms or START_MS)
        self.playback = Playback(trades, pace)
        self.playback.begin(self.now())

    def now(self) -> Moment:
        return Moment.of(self.clock)

    def after(self, seconds: float, limit: int = 1000) -> list[str]:
        self.clock.advance(seconds)
        return [trade["trade_id"] for trade in self.playback.due(self.now(), limit)]

    def wait_s(self) -> float | None:
        return self.playback.wait_s(self.now())


def test_at_the_recorded_speed() -> None:
    player = Player(trades_at(0, 0, 1000, 3000), Pace(1.0), now_ms=START_MS + 10_000_000)
    assert player.after(0) == ["100", "101"]
    assert player.wait_s() == 1.0
    assert player.after(0.9) == []
    assert player.after(0.1) == ["102"]
    assert player.after(2) == ["103"]
    assert player.wait_s() is None


def test_n_times_faster() -> None:
    player = Player(trades_at(0, 1000, 3000), Pace(10.0))
    assert player.after(0) == ["100"]
    assert player.wait_s() == 0.1
    assert player.after(0.1) == ["101"]
    assert player.after(0.2) == ["102"]


def test_as_fast_as_it_is_read() -> None:
    player = Player(trades_at(0, 1000, 3000), Pace(None))
    assert player.after(0, limit=2) == ["100", "101"]
    assert player.wait_s() == 0
    assert player.after(0, limit=2) == ["102"]
    assert player.wait_s() is None


def test_the_past_at_once_and_the_future_in_time() -> None:
    player = Player(
        trades_at(0, 5000, 10_000, 10_500), Pace(1.0, past_at_once=True), now_ms=START_MS + 10_000
    )
    assert player.after(0) == ["100", "101", "102"]
    assert player.wait_s() == 0.5
    assert player.after(0.5) == ["103"]


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=40),
    st.sampled_from([Pace(None), Pace(1.0), Pace(3.0), Pace(1.0, past_at_once=True)]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10)), max_size=40),
)
def test_every_trade_once_in_recorded_order(
    offsets: list[int], pace: Pace, looks: list[tuple[float, int]]
) -> None:
    trades = trades_at(*offsets)
    player = Player(trades, pace)
    got = [name for seconds, limit in looks for name in player.after(seconds, limit)]
    got += player.after(5)
    assert got == [trade["trade_id"] for trade in trades]
    assert player.after(100) == []


def test_the_loop_keeps_its_rate() -> None:
    player = Player(trades_at(0, 1), Pace(None, loop=20.0))
    assert player.after(0) == ["100", "101"]
    assert player.wait_s() == 0.05
    assert player.after(0) == []
    assert player.after(0.05) == ["102"]
    assert len(player.after(10)) == 200
    assert player.wait_s() is not None


def test_a_loop_goes_on_where_the_recording_ended() -> None:
    recording = generate_trades(seed=1, count=200, instruments=["BTC-PERPETUAL", "ETH-PERPETUAL"])
    loop = TradeLoop(recording.trades)
    looped = [loop.next_trade(START_MS + index) for index in range(500)]
    everything = [*recording.trades, *looped]
    assert Recording.of(everything).repeated == 0
    without_ticks = [
        {key: value for key, value in trade.items() if key not in {"trade_seq", "tick_direction"}}
        for trade in everything
    ]
    assert [dict(sorted(trade.items())) for trade in Recording.of(without_ticks).trades] == [
        dict(sorted(trade.items())) for trade in everything
    ]
    assert len({trade["trade_id"] for trade in everything}) == 700
    assert [trade["timestamp"] for trade in looped] == [START_MS + index for index in range(500)]
    assert [trade["price"] for trade in looped[:200]] == [
        trade["price"] for trade in recording.trades
    ]


@given(st.integers(0, 80), st.integers(0, 80))
def test_skipping_is_playing_without_a_look(first: int, second: int) -> None:
    recording = generate_trades(seed=2, count=12, instruments=["BTC-PERPETUAL", "ETH-PERPETUAL"])
    skipping, playing = TradeLoop(recording.trades), TradeLoop(recording.trades)
    skipping.skip(first)
    skipping.skip(second)
    for _ in range(first + second):
        playing.next_trade(START_MS)
    assert skipping.position == playing.position
    for _ in range(30):
        assert skipping.next_trade(START_MS) == playing.next_trade(START_MS)


def test_time_in_a_loop_never_goes_back() -> None:
    loop = TradeLoop(trades_at(0))
    assert loop.next_trade(START_MS + 5)["timestamp"] == START_MS + 5
    assert loop.next_trade(START_MS + 1)["timestamp"] == START_MS + 5


def test_combo_parents_are_not_repeated() -> None:
    leg, parent = trades_at(0, 0)
    parent = {**parent, "instrument_name": "BTC-FS-25DEC26_PERP", "trade_seq": 1, "legs": [leg]}
    loop = TradeLoop((leg, parent))
    assert {loop.next_trade(START_MS)["instrument_name"] for _ in range(4)} == {"BTC-PERPETUAL"}
    player = Player((parent,), Pace(None, loop=10.0))
    assert player.after(0) == [parent["trade_id"]]
    assert player.after(1) == []
    assert player.wait_s() is None
