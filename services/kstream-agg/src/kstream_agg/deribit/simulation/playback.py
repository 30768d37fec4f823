"""When which trade happens: a recording against the clock, then perhaps in a loop. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kstream_agg.deribit.recording import tick_direction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.rpc import Moment

__all__ = ["Pace", "Playback", "TradeLoop"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a recording is played.

    Args:
        speed: 1 is the speed it was recorded at, N is N times that; None plays as fast as the
            subscribers take it.
        past_at_once: Trades with times before the start of the playback happen at once, later
            ones from there on at `speed`; else the first trade happens at the start.
        loop: Trades per second after the recording's end; 0 plays it once.
    """

    speed: float | None = None
    past_at_once: bool = False
    loop: float = 0.0


class Playback:
    """Hands out a recording's trades when they are due, in recorded order.

    Args:
        trades: The recording's.
        pace: How fast.
    """

    def __init__(self, trades: Sequence[WireTrade], pace: Pace) -> None:
        self._trades = trades
        self._pace = pace
        self._next = 0
        self._origin_ms = 0
        self._began = 0.0
        self._loop: TradeLoop | None = None
        self._loop_began = 0.0
        self._looped = 0

    def begin(self, now: Moment) -> None:
        """Time starts to run."""
        self._began = now.monotonic
        if self._pace.past_at_once:
            self._origin_ms = now.wall_ms
        elif self._trades:
            self._origin_ms = self._trades[0]["timestamp"]

    @property
    def played(self) -> bool:
        """Whether the recording's last trade was handed out; a loop may go on."""
        return self._next >= len(self._trades)

    def due(self, now: Moment, limit: int) -> list[WireTrade]:
        """The next trades whose time has come, at most `limit`."""
        if self.played:
            return self._due_in_loop(now, limit)
        end = self._next
        last = min(len(self._trades), end + limit)
        while end < last and self._due_at(self._trades[end]) <= now.monotonic:
            end += 1
        trades = list(self._trades[self._next : end])
        self._next = end
        return trades

    def wait_s(self, now: Moment) -> float | None:
        """Seconds until the next trade is due, 0 when one is; None when no more will come."""
        if not self.played:
            return max(0.0, self._due_at(self._trades[self._next]) - now.monotonic)
        if self._pace.loop <= 0 or not self._trades:
            return None
        if self._loop is None:
            return 0.0
        if not self._loop.has_trades:
            return None
        return max(0.0, self._loop_due_at(self._looped) - now.monotonic)

    def _due_at(self, trade: WireTrade) -> float:
        if self._pace.speed is None:
            return self._began
        after_ms: int = trade["timestamp"] - self._origin_ms
        return self._began + max(0, after_ms) / 1000 / self._pace.speed

    def _due_in_loop(self, now: Moment, limit: int) -> list[WireTrade]:
        if self._pace.loop <= 0:
            return []
        if self._loop is None:
            self._loop = TradeLoop(self._trades)
            self._loop_began = now.monotonic
        trades: list[WireTrade] = []
        while (
            self._loop.has_trades
            and len(trades) < limit
            and self._loop_due_at(self._looped) <= now.monotonic
        ):
            trades.append(self._loop.next_trade(now.wall_ms))
            self._looped += 1
        return trades

    def _loop_due_at(self, index: int) -> float:
        return self._loop_began + (index + 1) / self._pace.loop


class TradeLoop:
    """A recording's trades over and over, as new trades of the present.

    `trade_seq` and the ids go on where the recording ended, `tick_direction` follows the rule.
    Combo parents are left out: their legs name trades by ids that would no longer be right.

    Args:
        trades: The recording's.
    """

    def __init__(self, trades: Sequence[WireTrade]) -> None:
        self._trades = [trade for trade in trades if not trade.get("legs")]
        self._index = 0
        self._last: dict[str, tuple[int, float, int]] = {}
        self._ids: dict[str, int] = {}
        self._last_ms = 0
        for trade in trades:
            self._remember(trade)
            prefix, number = _split_id(trade["trade_id"])
            self._ids[prefix] = max(number, self._ids.get(prefix, 0))

    @property
    def has_trades(self) -> bool:
        """Whether there is anything to repeat."""
        return bool(self._trades)

    def next_trade(self, now_ms: int) -> WireTrade:
        """The next trade, at `now_ms` (milliseconds since the epoch) or the last one's time."""
        template = self._trades[self._index]
        self._index = (self._index + 1) % len(self._trades)
        seq, price, tick = self._last[template["instrument_name"]]
        prefix, _ = _split_id(template["trade_id"])
        self._ids[prefix] += 1
        self._last_ms = max(self._last_ms, now_ms)
        trade = {
            **template,
            "trade_seq": seq + 1,
            "trade_id": f"{prefix}{self._ids[prefix]}",
            "timestamp": self._last_ms,
            "tick_direction": tick_direction(template["price"], (price, tick)),
        }
        if "starbase_timestamp" in trade:
            trade["starbase_timestamp"] = self._last_ms * 1_000_000
        self._remember(trade)
        return trade

    def _remember(self, trade: WireTrade) -> None:
        name = trade["instrument_name"]
        before = self._last.get(name)
        if before is None or trade["trade_seq"] > before[0]:
            self._last[name] = (trade["trade_seq"], trade["price"], trade["tick_direction"])


def _split_id(trade_id: str) -> tuple[str, int]:
    """`ETH-15` → (`ETH-`, 15); an id without digits at its end counts from 0."""
    prefix, hyphen, digits = trade_id.rpartition("-")
    if digits.isdecimal():
        return prefix + hyphen, int(digits)
    return trade_id + "-", 0
