"""What a channel covers, as parameters of the exchange's history calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Scope", "scopes_of"]

# The trades calls know no currency `any` (https://docs.deribit.com).
_CURRENCIES: Final = ("BTC", "ETH", "USDC", "USDT", "EURR")


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of a channel that one call can ask for by time.

    Args:
        method: The call.
        params: What names the part.
    """

    method: str
    params: dict[str, str]

    def __hash__(self) -> int:
        return hash((self.method, *self.params.items()))


def scopes_of(channel: str) -> tuple[Scope, ...]:
    """The parts of `trades.{kind}.{currency}.{interval}` or `trades.{instrument}.{interval}`."""
    parts = channel.split(".")
    if len(parts) == 3:
        return (Scope("get_last_trades_by_instrument_and_time", {"instrument_name": parts[1]}),)
    kind, currency = parts[1], parts[2]
    return tuple(
        Scope("get_last_trades_by_currency_and_time", {"currency": name, "kind": kind})
        for name in (_CURRENCIES if currency == "any" else (currency,))
    )
