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
        looped: Trades that an earlier playback had played in its loop: this one goes on behind
            them. None begins with the recording.
    """

    def __init__(
        self, trades: Sequence[WireTrade], pace: Pace, *, looped: int | None = None
    ) -> None:
        self._trades = trades
        self._pace = pace
        self._next = 0
        self._origin_ms = 0
        self._began = 0.0
        self._loop = TradeLoop(trades)
        self._loop_from = 0
        self.loop_began: Moment | None = None
        """When the loop began, or went on; None before."""
        if looped is not None:
            self._next = len(trades)
            self._loop.skip(looped)

    def begin(self, now: Moment) -> None:
        """Time starts to run."""
        self._began = now.monotonic
        if self.played:
            self._begin_loop(now)
        elif self._pace.past_at_once:
            self._origin_ms = now.wall_ms
        else:
            self._origin_ms = self._trades[0]["timestamp"]

    @property
    def played(self) -> bool:
        """Whether the recording's last trade was handed out; a loop may go on."""
        return self._next >= len(self._trades)

    @property
    def looped(self) -> int:
        """Trades played by the loop, by earlier playbacks too."""
        return self._loop.position

    def due(self, now: Moment, limit: int) -> list[WireTrade]:
        """The next trades whose time has come, at most `limit`."""
        if self.loop_began is not None:
            return self._due_in_loop(self.loop_began, now, limit)
        end = self._next
        last = min(len(self._trades), end + limit)
        while end < last and self._due_at(self._trades[end]) <= now.monotonic:
            end += 1
        trades = list(self._trades[self._next : end])
        self._next = end
        if self.played:
            self._begin_loop(now)
        return trades

    def wait_s(self, now: Moment) -> float | None:
        """Seconds until the next trade is due, 0 when one is; None when no more will come."""
        if self.loop_began is None:
            return max(0.0, self._due_at(self._trades[self._next]) - now.monotonic)
        if self._pace.loop <= 0 or not self._loop.has_trades:
            return None
        return max(0.0, self.loop_began.monotonic + self._loop_after_s() - now.monotonic)

    def catch_up(self, began_ms: int, rate: float, count: int, keep: int) -> list[WireTrade]:
        """Trades that a loop would have played while nobody was there.

        Args:
            began_ms: When that loop began.
            rate: Its trades per second.
            count: How many there were.
            keep: How many of them, the last ones, are given.
        """
        if not self._loop.has_trades:
            return []
        first = max(0, count - keep)
        self._loop.skip(first)
        return [
            self._loop.next_trade(began_ms + round((index + 1) * 1000 / rate))
            for index in range(first, count)
        ]

    def _due_at(self, trade: WireTrade) -> float:
        if self._pace.speed is None:
            return self._began
        after_ms: int = trade["timestamp"] - self._origin_ms
        return self._began + max(0, after_ms) / 1000 / self._pace.speed

    def _begin_loop(self, now: Moment) -> None:
        self.loop_began = now
        self._loop_from = self._loop.position

    def _due_in_loop(self, began: Moment, now: Moment, limit: int) -> list[WireTrade]:
        trades: list[WireTrade] = []
        if self._pace.loop <= 0 or not self._loop.has_trades:
            return trades
        while len(trades) < limit:
            after_s = self._loop_after_s()
            if began.monotonic + after_s > now.monotonic:
                break
            trades.append(self._loop.next_trade(began.wall_ms + round(after_s * 1000)))
        return trades

    def _loop_after_s(self) -> float:
        """Seconds from the loop's begin to its next trade."""
        return (self._loop.position - self._loop_from + 1) / self._pace.loop


class TradeLoop:
    """A recording's trades over and over, as new trades of the present.

    `trade_seq` and the ids go on where the recording ended, `tick_direction` follows the rule.
    Combo parents are left out: their legs name trades by ids that would no longer be right.

    Args:
        trades: The recording's.
    """

    def __init__(self, trades: Sequence[WireTrade]) -> None:
        self._trades = [trade for trade in trades if not trade.get("legs")]
        self.position = 0
        """Trades given or skipped so far."""
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
        """The next trade, at `now_ms` (milliseconds since the epoch), or later: times only rise."""
        template = self._trades[self.position % len(self._trades)]
        self.position += 1
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

    def skip(self, count: int) -> None:
        """Go on as if `count` trades had been given."""
        if not self._trades:
            return
        size = len(self._trades)
        # After one round every following one leaves the same prices and tick directions.
        rounds = max(0, count // size - 1)
        for _ in range(count - rounds * size):
            self.next_trade(self._last_ms)
        self._skip_rounds(rounds)

    def _skip_rounds(self, rounds: int) -> None:
        self.position += rounds * len(self._trades)
        for trade in self._trades if rounds else ():
            name = trade["instrument_name"]
            seq, price, tick = self._last[name]
            self._last[name] = (seq + rounds, price, tick)
            self._ids[_split_id(trade["trade_id"])[0]] += rounds

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
