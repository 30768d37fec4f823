"""Recordings as a recorder of the exchange's trades writes them."""

from __future__ import annotations

import csv
import gzip
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kstream_agg.deribit.recording_formats import WireTrade

COLUMNS = (
    "timestamp",
    "trade_id",
    "trade_seq",
    "instrument_name",
    "direction",
    "price",
    "amount",
    "iv",
    "index_price",
    "tick_direction",
)


def write_csv_gz(path: Path, trades: Iterable[WireTrade]) -> Path:
    """A row a trade, below a header; gives the path back."""
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(trades)
    return path


def write_jsonl(path: Path, trades: Iterable[WireTrade]) -> Path:
    """A JSON object a trade and line; gives the path back."""
    path.write_text("\n".join(json.dumps(trade) for trade in trades), encoding="utf-8")
    return path
