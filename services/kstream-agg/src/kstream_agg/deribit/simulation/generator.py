"""Seeded trades in place of a recording: plausible, and as many as wanted."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.deribit.recording import Recording, tick_direction
from kstream_agg.deribit.simulation.instruments import parse_instrument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.instruments import Instrument

__all__ = ["DEFAULT_INSTRUMENTS", "generate_trades"]

DEFAULT_INSTRUMENTS: Final = (
    "BTC-PERPETUAL",
    *(
        f"BTC-{expiry}-{strike}-{side}"
        for expiry in ("6FEB26", "27MAR26", "25DEC26")
        for strike in range(50_000, 110_000, 10_000)
        for side in "CP"
    ),
)
"""The perpetual and 36 options."""

_START_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00:00Z
# Of the recorded trades about two in five share their millisecond with the one before.
_SAME_MS: Final = 0.4
_FIRST_ID: Final = 400_000_000  # about where BTC's ids were in early 2026


def generate_trades(
    *,
    seed: int,
    count: int,
    instruments: Sequence[str] = DEFAULT_INSTRUMENTS,
    start_ms: int = _START_MS,
    mean_gap_ms: int = 500,
) -> Recording:
    """Make trades; the same arguments give the same trades.

    Per instrument `trade_seq` counts from 1 without holes; ids are unique and rise; times do not
    fall, and many trades share a millisecond; prices walk at random on the instrument's steps.

    Args:
        seed: Of the random numbers.
        count: How many trades.
        instruments: Their names; they take turns at random.
        start_ms: Time of the first trade in milliseconds since the epoch.
        mean_gap_ms: Mean time between trades that do not share a millisecond.
    """
    rng = random.Random(seed)  # noqa: S311 - trades to play with, no secrets
    walks = [_Walk(parse_instrument(name), rng) for name in instruments]
    trades: list[WireTrade] = []
    timestamp, number = start_ms, _FIRST_ID
    for _ in range(count):
        trades.append(rng.choice(walks).trade(timestamp, number))
        number += rng.randint(1, 3)
        if rng.random() >= _SAME_MS:
            timestamp += 1 + int(rng.expovariate(1 / mean_gap_ms))
    return Recording(f"generated, seed {seed}", tuple(trades))


class _Walk:
    """One instrument's trades: a price that moves by whole steps around where it began."""

    def __init__(self, instrument: Instrument, rng: random.Random) -> None:
        self._instrument = instrument
        self._rng = rng
        self._option = instrument.kind == "option"
        inverse_option = self._option and instrument.currency == instrument.base
        self._step = 0.0001 if inverse_option else 0.5
        self._steps = rng.randint(50, 900) if inverse_option else rng.randint(140_000, 150_000)
        # Ids are unique per currency: BTC's are bare digits, others carry a prefix.
        prefix = instrument.name.partition("-")[0]
        self._prefix = "" if prefix == "BTC" else f"{prefix}-"
        self._seq = 0
        self._last: tuple[float, int] | None = None

    def trade(self, timestamp: int, number: int) -> WireTrade:
        """The instrument's next trade."""
        rng = self._rng
        self._steps = max(1, self._steps + rng.choice((-2, -1, 0, 0, 0, 1, 2)))
        price = round(self._steps * self._step, 4)
        tick = tick_direction(price, self._last)
        self._last = (price, tick)
        self._seq += 1
        amount = rng.randint(1, 100) / 10 if self._option else float(rng.randint(1, 500) * 10)
        trade: dict[str, Any] = {
            "trade_seq": self._seq,
            "trade_id": f"{self._prefix}{number}",
            "timestamp": timestamp,
            "tick_direction": tick,
            "price": price,
            "mark_price": round(price * 1.001, 6),
        }
        if self._option:
            trade["iv"] = rng.randint(3000, 9000) / 100
        trade |= {
            "instrument_name": self._instrument.name,
            "index_price": rng.randint(7_000_000, 7_500_000) / 100,
            "direction": rng.choice(("buy", "sell")),
            "contracts": amount if self._option else amount / 10,
            "amount": amount,
        }
        return trade
