"""How trades are written on the wire: plainly, or in the ways that have surprised clients."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.scenario import Scenario

__all__ = ["Spelling"]

_encode = msgspec.json.Encoder().encode
_NUMBERS: Final = ("price", "amount", "index_price", "mark_price", "contracts", "iv")


class Spelling:
    """Writes trades; what it does to a trade depends on seed, instrument and number only.

    Args:
        scenario: Gives what is unusual now; it can change.
    """

    def __init__(self, scenario: Callable[[], Scenario]) -> None:
        self._scenario = scenario

    def write(self, trade: WireTrade) -> tuple[bytes, bytes | None]:
        """The trade as the stream gives it, and as the history does where that differs."""
        scenario = self._scenario()
        if not (
            scenario.exponents
            or scenario.unknown_fields
            or scenario.unknown_values
            or scenario.late_liquidations
        ):
            return _encode(trade), None
        name, seq = trade["instrument_name"], trade["trade_seq"]
        chance = random.Random(f"{scenario.seed} {name} {seq}").random  # noqa: S311 - no secrets
        written = dict(trade)
        if chance() < scenario.unknown_fields:
            written["unheard_of"] = {"since": 2027, "parts": ["a", None]}
        if chance() < scenario.unknown_values:
            written["direction"] = "zero"
            written["tick_direction"] = 7
        if chance() < scenario.exponents:
            for key in _NUMBERS:
                if key in written:
                    written[key] = msgspec.Raw(f"{Decimal(repr(written[key])):e}".encode())
        later = None
        if chance() < scenario.late_liquidations:
            later = _encode({**written, "liquidation": "T"})
        return _encode(written), later
