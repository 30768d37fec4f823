"""The two file formats of recordings: lines in, wire trades out, errors with line numbers."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec

from kstream_agg.core.errors import ContractError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["JsonlTrades", "WireTrade", "csv_trades", "jsonl_trades"]

WireTrade: TypeAlias = dict[str, Any]
"""A trade with the exchange's own keys, as JSON gives it."""


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


def _side(text: str) -> str:
    if text not in {"buy", "sell"}:
        raise ValueError("is neither buy nor sell")
    return text


# The columns of a recording in the order of the exchange's keys, and how a cell is read.
_COLUMNS: Final[dict[str, Callable[[str], object]]] = {
    "trade_seq": int,
    "trade_id": str,
    "timestamp": int,
    "tick_direction": int,
    "price": _number,
    "mark_price": _number,
    "liquidation": str,
    "iv": _number,
    "instrument_name": str,
    "index_price": _number,
    "direction": _side,
    "contracts": _number,
    "combo_trade_id": str,
    "combo_id": str,
    "block_trade_leg_count": int,
    "block_trade_id": str,
    "block_rfq_id": int,
    "amount": _number,
    "starbase_match_id": int,
    "starbase_timestamp": int,
}
_REQUIRED: Final[dict[str, type | tuple[type, ...]]] = {
    "trade_id": str,
    "instrument_name": str,
    "timestamp": int,
    "price": (int, float),
    "amount": (int, float),
    "direction": str,
}


def csv_trades(path: Path) -> Iterator[WireTrade]:
    """The trades of a CSV file with a header; an empty cell is an absent field.

    Raises:
        ContractError: The header lacks a required column or has an unknown one, a row is wrong,
            or the archive is damaged.
    """
    with _open(path) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            columns = _check_header(path, next(reader, []))
            for row in reader:
                if len(row) != len(columns):
                    raise _wrong_line(
                        path, reader.line_num, f"has {len(row)} cells, not {len(columns)}"
                    )
                yield _parse_row(path, reader.line_num, columns, row)
        except csv.Error as error:
            raise _wrong_line(path, reader.line_num, f"is not CSV: {error}") from error


def _check_header(path: Path, header: list[str]) -> list[tuple[int, str]]:
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise _wrong_line(path, 1, f"lacks the columns {', '.join(missing)}")
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown or len(set(header)) != len(header):
        what = f"unknown columns {', '.join(unknown)}" if unknown else "a column twice"
        raise _wrong_line(path, 1, f"has {what}; known are {', '.join(_COLUMNS)}")
    return sorted(enumerate(header), key=lambda column: list(_COLUMNS).index(column[1]))


def _parse_row(path: Path, line: int, columns: list[tuple[int, str]], row: list[str]) -> WireTrade:
    trade: WireTrade = {}
    for index, name in columns:
        cell = row[index]
        if cell:
            try:
                trade[name] = _COLUMNS[name](cell)
            except ValueError as error:
                raise _wrong_line(path, line, f"has a wrong {name} '{cell}': {error}") from error
        elif name in _REQUIRED:
            raise _wrong_line(path, line, f"has no {name}")
    return trade


@dataclass(slots=True)
class JsonlTrades:
    """The trades of a file of JSON lines, and how many lines held none."""

    trades: list[WireTrade] = field(default_factory=list)
    ignored: int = 0


def jsonl_trades(path: Path) -> JsonlTrades:
    """The trades of websocket frames or bare trades, one JSON object a line.

    A line may wrap its frame as `{"message": frame, …}`. Acknowledgements, heartbeats and other
    channels are counted as ignored.

    Raises:
        ContractError: A line is not a JSON object, a trade lacks a required field, or the
            archive is damaged.
    """
    found = JsonlTrades()
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                message = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise _wrong_line(path, number, f"is not a JSON object: {error}") from error
            trades = _trades_of(message.get("message", message))
            if trades is None:
                found.ignored += 1
                continue
            for trade in trades:
                _check_trade(path, number, trade)
            found.trades += cast("list[WireTrade]", trades)
    return found


def _trades_of(message: object) -> list[object] | None:
    """The trades of one message; None when it is of another kind."""
    match message:
        case {"params": {"channel": str(channel), "data": list(data)}}:
            return data if channel.startswith("trades.") else None
        case {"instrument_name": _, "trade_id": _}:
            return [message]
        case _:
            return None


def _check_trade(path: Path, line: int, trade: object) -> None:
    if not isinstance(trade, dict):
        raise _wrong_line(path, line, "holds a trade that is no JSON object")
    for name, kind in _REQUIRED.items():
        if not isinstance(trade.get(name), kind):
            raise _wrong_line(path, line, f"holds a trade with a missing or wrong {name}")


def _wrong_line(path: Path, line: int, what: str) -> ContractError:
    return ContractError(f"{path.name}, line {line}: the line {what}")


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    """Open plain or compressed text; what goes wrong while reading becomes ours."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if path.name.endswith(".gz")
            else path.open(encoding="utf-8", newline="")
        ) as lines:
            yield lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ContractError(
            f"the recording '{path.name}' is damaged: {error}", remedy="fetch the file again"
        ) from error
    except UnicodeDecodeError as error:
        raise ContractError(f"the recording '{path.name}' is not UTF-8 text: {error}") from error
    except OSError as error:
        raise SettingsError(
            f"the recording '{path}' cannot be read: {error.strerror or error}"
        ) from error
