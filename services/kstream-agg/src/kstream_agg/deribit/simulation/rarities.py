"""Trades that recordings seldom hold: combos with their legs, block trades, decimal strikes."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Final

from kstream_agg.deribit.recording import Recording
from kstream_agg.deribit.simulation.instruments import parse_instrument

if TYPE_CHECKING:
    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.deribit.simulation.scenario import Scenario

__all__ = ["with_rarities"]

_BLOCK_LEGS: Final = 2
_LEG_FIELDS: Final = ("trade_seq", "trade_id", "timestamp", "price", "instrument_name", "amount")


def with_rarities(recording: Recording, scenario: Scenario) -> Recording:
    """The recording with some trades turned into parts of combos and blocks, and some added.

    A combo's parent is a trade of its own, on an instrument of its own, right before its legs'
    neighbours; it carries them as `legs`. The same seed does the same to the same recording.
    """
    if not (scenario.combos or scenario.block_trades or scenario.decimal_strikes):
        return recording
    rng = random.Random(scenario.seed)  # noqa: S311 - no secrets
    seqs: Counter[str] = Counter()
    trades: list[WireTrade] = []
    for trade in recording.trades:
        changed = trade
        if rng.random() < scenario.block_trades:
            block = {"block_trade_id": f"BLOCK-{len(trades)}", "block_trade_leg_count": _BLOCK_LEGS}
            changed = {**changed, **block}
        if rng.random() < scenario.combos:
            changed, parent = _combine(changed, seqs)
            trades.append(parent)
        trades.append(changed)
        if rng.random() < scenario.decimal_strikes:
            trades.append(_with_decimal_strike(trade, seqs))
    return Recording(recording.name, tuple(trades), recording.ignored, recording.repeated)


def _combine(leg: WireTrade, seqs: Counter[str]) -> tuple[WireTrade, WireTrade]:
    currency = parse_instrument(leg["instrument_name"]).currency
    name = f"{currency}-CS-27MAR26-70000_75000"
    seqs[name] += 1
    marked = {**leg, "combo_id": name, "combo_trade_id": str(seqs[name])}
    plain = {key: value for key, value in leg.items() if key not in {"iv", "block_trade_id"}}
    parent = {
        **plain,
        "instrument_name": name,
        "trade_seq": seqs[name],
        "tick_direction": 1,
        "legs": [{key: marked[key] for key in _LEG_FIELDS}],
    }
    return marked, parent


def _with_decimal_strike(trade: WireTrade, seqs: Counter[str]) -> WireTrade:
    """A trade of the same time on an instrument of the same kind and currency."""
    instrument = parse_instrument(trade["instrument_name"])
    name = f"{instrument.currency}-27MAR26-0d625-C"
    if instrument.currency != instrument.base:
        name = f"{instrument.base}_{name}"
    seqs[name] += 1
    return {**trade, "instrument_name": name, "trade_seq": seqs[name], "tick_direction": 1}
