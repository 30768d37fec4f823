"""Instrument names and what they say: kind, currency, expiry, strike.

A simulated exchange lists the instruments of its recording. A recording is short, so none of
them expires: every instrument is active, whatever the date in its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

__all__ = ["KINDS", "Instrument", "Kind", "kind_matches", "parse_instrument"]

Kind: TypeAlias = Literal["future", "option", "spot", "future_combo", "option_combo"]
KINDS: Final = ("any", "combo", "future", "future_combo", "option", "option_combo", "spot")
"""What callers may name; `combo` stands for both kinds of combo."""

_OPTION = re.compile(
    r"^(?P<base>[A-Z0-9]+(?:_[A-Z0-9]+)?)-(?P<expiry>\d{1,2}[A-Z]{3}\d{2})"
    r"-(?P<strike>\d+(?:d\d+)?)-(?P<side>[CP])$"
)
_FUTURE = re.compile(
    r"^(?P<base>[A-Z0-9]+(?:_[A-Z0-9]+)?)-(?P<expiry>PERPETUAL|\d{1,2}[A-Z]{3}\d{2})$"
)
_NEVER_MS: Final = 32_503_708_800_000  # the exchange's expiry of a perpetual
_MONTHS: Final = "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"


@dataclass(frozen=True, slots=True)
class Instrument:
    """An instrument, as far as its name tells.

    Args:
        name: `BTC-27MAR26-100000-C`, `BTC_USDC-PERPETUAL`, …
        kind: What it is.
        currency: Under which it is listed: the coin of inverse ones, the quote currency of
            linear and spot ones (`BTC_USDC-PERPETUAL` is listed under USDC).
        base: Its base coin.
        expiry_ms: Expiry in milliseconds since the epoch; None where the name has none.
        strike: Options only.
        option_type: Options only.
    """

    name: str
    kind: Kind
    currency: str
    base: str
    expiry_ms: int | None = None
    strike: float | None = None
    option_type: Literal["call", "put"] | None = None

    def listing(self, instrument_id: int, created_ms: int) -> dict[str, Any]:
        """The row of `public/get_instruments`; steps and sizes are the exchange's usual ones."""
        linear = self.currency != self.base
        quote = self.currency if linear else self.base if self.kind == "option" else "USD"
        inverse_option = self.kind == "option" and not linear
        row: dict[str, Any] = {
            "kind": self.kind,
            "instrument_name": self.name,
            "instrument_id": instrument_id,
            "instrument_type": "linear" if linear else "reversed",
            "base_currency": self.base,
            "quote_currency": quote,
            "counter_currency": self.currency if linear else "USD",
            "is_active": True,
            "state": "open",
            "creation_timestamp": created_ms,
            "tick_size": 0.0001 if inverse_option else 0.5,
            "tick_size_steps": [{"above_price": 0.005, "tick_size": 0.0005}]
            if inverse_option
            else [],
            "contract_size": 10 if self.kind == "future" and not linear else 1,
            "min_trade_amount": 0.1 if self.kind == "option" else 10,
            "price_index": f"{self.base}_{self.currency if linear else 'usd'}".lower(),
        }
        if self.kind != "spot":
            row["settlement_currency"] = self.currency
            row["settlement_period"] = self._settlement_period()
            row["expiration_timestamp"] = self.expiry_ms or _NEVER_MS
        if self.kind == "option":
            row["strike"] = self.strike
            row["option_type"] = self.option_type
        return row

    def _settlement_period(self) -> str:
        if self.expiry_ms is None or self.expiry_ms == _NEVER_MS:
            return "perpetual"
        day = datetime.fromtimestamp(self.expiry_ms / 1000, UTC)
        if day.isoweekday() != 5:
            return "day"
        return "week" if (day + timedelta(days=7)).month == day.month else "month"


def parse_instrument(name: str) -> Instrument:
    """What a name says. A name of no known form is taken for a combo's: those vary most."""
    prefix, dash, rest = name.partition("-")
    base, _, quote = prefix.partition("_")
    currency = quote or base
    if not dash:
        return Instrument(name, "spot", currency, base)
    if match := _OPTION.match(name):
        return Instrument(
            name,
            "option",
            currency,
            base,
            expiry_ms=_expiry_ms(match["expiry"]),
            strike=float(match["strike"].replace("d", ".")),
            option_type="call" if match["side"] == "C" else "put",
        )
    if match := _FUTURE.match(name):
        return Instrument(name, "future", currency, base, expiry_ms=_expiry_ms(match["expiry"]))
    kind: Kind = "future_combo" if rest.startswith("FS-") else "option_combo"
    return Instrument(name, kind, currency, base)


def kind_matches(asked: str, kind: Kind) -> bool:
    """Whether an instrument's kind is among those a channel or call asks for."""
    return asked in {"any", kind} or (asked == "combo" and kind.endswith("_combo"))


def _expiry_ms(text: str) -> int | None:
    """08:00 UTC of a day such as `5AUG23`; None when there is no such day."""
    if text == "PERPETUAL":
        return _NEVER_MS
    day, month, year = text[:-5], text[-5:-2], text[-2:]
    try:
        month_number = _MONTHS.index(month) // 3 + 1
        moment = datetime(2000 + int(year), month_number, int(day), 8, tzinfo=UTC)
    except ValueError:
        return None
    return round(moment.timestamp() * 1000)
