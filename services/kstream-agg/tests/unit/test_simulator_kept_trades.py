"""The trades a simulated exchange keeps, against a plain list."""

from __future__ import annotations

import random
from typing import NamedTuple

from kstream_agg.deribit.simulation.kept_trades import KeptTrades


class Timed(NamedTuple):
    number: int
    timestamp: int


def test_times_and_the_newest_are_those_of_a_plain_list() -> None:
    rng = random.Random(1)  # noqa: S311 - a test's data
    kept: KeptTrades[Timed] = KeptTrades(2_500)
    plain: list[Timed] = []
    for number in range(6_000):
        trade = Timed(number, number * 3 + rng.randrange(40))
        plain.append(trade)
        dropped = kept.append(trade)
        assert dropped == (plain.pop(0) if len(plain) > 2_500 else None)
    assert list(kept) == plain
    assert len(kept) == 2_500
    assert kept.newest(3) == plain[:-4:-1]
    assert kept.newest(9_000) == plain[::-1]
    for _ in range(50):
        low = rng.randrange(9_000, 19_000)
        high = low + rng.randrange(4_000)
        wanted = [trade for trade in plain if low <= trade.timestamp <= high]
        assert list(kept.between(low, high)) == wanted
