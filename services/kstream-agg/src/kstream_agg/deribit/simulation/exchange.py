"""The simulated exchange's world: its instruments and the trades that have happened so far."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from kstream_agg.deribit.simulation.instruments import Instrument, kind_matches, parse_instrument
from kstream_agg.deribit.simulation.kept_trades import KeptTrades

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.channels import Channel

__all__ = ["Exchange", "PublishedTrade"]

# BTC's channels are there even before it trades, as on the exchange.
_ALWAYS_LISTED: Final = "BTC"


class PublishedTrade(NamedTuple):
    """A trade that has happened.

    `wire` is its JSON text; `number` is what follows the last hyphen of its id: ids of one
    currency are ordered by it (`ETH-284830839`).
    """

    instrument: str
    trade_seq: int
    number: int
    timestamp: int
    wire: bytes
    later: bytes | None = None
    """Its JSON text in the history, where that differs."""


class Exchange:
    """Instruments and published trades.

    Args:
        recording_trades: The trades that will be played: they say which instruments are listed.
        history: Trades kept for the history calls, per currency; the oldest go first. (The real
            exchange keeps about a day.)
        write: Gives a trade's text on the stream, and in the history where that differs.
    """

    def __init__(
        self,
        recording_trades: Iterable[WireTrade],
        *,
        history: int = 200_000,
        write: Callable[[WireTrade], tuple[bytes, bytes | None]] | None = None,
    ) -> None:
        self.instruments: dict[str, Instrument] = {}
        self._created: dict[str, int] = {}
        for trade in recording_trades:
            name = trade["instrument_name"]
            if name not in self.instruments:
                self.instruments[name] = parse_instrument(name)
                self._created[name] = trade["timestamp"]
        self.currencies = {item.currency for item in self.instruments.values()} | {_ALWAYS_LISTED}
        self.published = 0
        self._by_currency: dict[str, KeptTrades[PublishedTrade]] = {
            currency: KeptTrades(history) for currency in self.currencies
        }
        self._by_instrument: dict[str, deque[PublishedTrade]] = {
            name: deque() for name in self.instruments
        }
        self._write = write or _write_plainly

    def publish(self, trades: Sequence[WireTrade]) -> list[PublishedTrade]:
        """Let trades happen: from now on the history calls know them.

        Args:
            trades: Of listed instruments, with `trade_seq`.
        """
        write = self._write
        happened = [
            PublishedTrade(
                trade["instrument_name"],
                trade["trade_seq"],
                _number(trade["trade_id"]),
                trade["timestamp"],
                *write(trade),
            )
            for trade in trades
        ]
        for trade in happened:
            self._by_instrument[trade.instrument].append(trade)
            kept = self._by_currency[self.instruments[trade.instrument].currency]
            dropped = kept.append(trade)
            if dropped is not None:
                self._by_instrument[dropped.instrument].popleft()
        self.published += len(happened)
        return happened

    def lists(self, channel: Channel) -> bool:
        """Whether there is such a channel here."""
        if channel.instrument is not None:
            return channel.instrument in self.instruments
        return channel.currency == "any" or channel.currency in self.currencies

    def currency_trades(self, currency: str, kind: str) -> Iterable[PublishedTrade]:
        """The kept trades of a currency (or of `any`) and a kind, in the order they happened."""
        wanted = {name for name, item in self.instruments.items() if kind_matches(kind, item.kind)}
        for listed, trades in self._by_currency.items():
            if currency in {"any", listed}:
                yield from (trade for trade in trades if trade.instrument in wanted)

    def currency_trades_between(
        self, currency: str, kind: str, low_ms: int, high_ms: int
    ) -> Iterable[PublishedTrade]:
        """Those of them from one time to another, both included (ms)."""
        wanted = {name for name, item in self.instruments.items() if kind_matches(kind, item.kind)}
        for listed, trades in self._by_currency.items():
            if currency in {"any", listed}:
                chosen = trades.between(low_ms, high_ms)
                yield from (trade for trade in chosen if trade.instrument in wanted)

    def instrument_trades(self, name: str) -> Iterable[PublishedTrade]:
        """The kept trades of a listed instrument, in the order they happened."""
        return self._by_instrument[name]

    def latest(self, count: int) -> list[PublishedTrade]:
        """The newest trades of some currency."""
        longest = max(self._by_currency.values(), key=len)
        return longest.newest(count)

    def listings(self, currency: str, kind: str) -> list[dict[str, Any]]:
        """The rows of `public/get_instruments`."""
        return [
            item.listing(number, self._created[item.name])
            for number, item in enumerate(self.instruments.values(), start=1)
            if currency in {"any", item.currency} and kind_matches(kind, item.kind)
        ]


_encode = msgspec.json.Encoder().encode


def _write_plainly(trade: WireTrade) -> tuple[bytes, None]:
    return _encode(trade), None


def _number(trade_id: str) -> int:
    digits = trade_id.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0
