"""Trades channels: which there are, and which trades they carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from kstream_agg.deribit.simulation.instruments import KINDS, kind_matches

if TYPE_CHECKING:
    from kstream_agg.deribit.simulation.instruments import Instrument

__all__ = ["Channel", "parse_channel"]

_CHANNEL = re.compile(r"^trades\.(?P<body>[^.]+(?:\.[^.]+)?)\.(?P<interval>raw|100ms|agg2)$")


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel's name taken apart: one instrument, or a kind and a currency.

    Args:
        name: As subscribed; notifications carry this text.
        interval: `raw`, `100ms` or `agg2`: how delivery is batched; every trade comes anyway.
        instrument: The instrument; None for a channel of kind and currency.
        kind: One of `KINDS`; `any` for a channel of one instrument.
        currency: A currency or `any`.
    """

    name: str
    interval: Literal["raw", "100ms", "agg2"]
    instrument: str | None = None
    kind: str = "any"
    currency: str = "any"

    def carries(self, instrument: Instrument) -> bool:
        """Whether the trades of an instrument come on this channel."""
        if self.instrument is not None:
            return self.instrument == instrument.name
        return kind_matches(self.kind, instrument.kind) and self.currency in {
            "any",
            instrument.currency,
        }


def parse_channel(name: str) -> Channel | None:
    """A channel from its name; None when the text is no trades channel."""
    match = _CHANNEL.match(name)
    if match is None:
        return None
    interval = cast("Literal['raw', '100ms', 'agg2']", match["interval"])
    kind, dot, currency = match["body"].partition(".")
    if not dot:
        return Channel(name, interval, instrument=kind)
    if kind not in KINDS:
        return None
    return Channel(name, interval, kind=kind, currency=currency)
