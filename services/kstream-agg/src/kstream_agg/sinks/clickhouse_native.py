"""Blocks in ClickHouse's Native format: columns as they lie in memory, one after the other.

https://clickhouse.com/docs/interfaces/formats/Native: the number of columns and of rows; for each
column its name, its type and its values. Numbers stand in little-endian order, a text behind its
length (a variable-length number), a nullable column behind a byte a row that says which are null.
All is made by numpy and polars, nothing row by row; every server since 2016 reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from kstream_agg.core.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Kind", "Target", "encode_block", "misfits", "parse_target"]

Kind = str
"""What a record's column holds: an Avro type (`string`, `bytes`, `long`, `double`, `boolean`), or
`timestamp-millis`."""

_NUMBERS: Final = {
    **{f"Int{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UInt{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "Float32": "<f4",
    "Float64": "<f8",
    "Bool": "<u1",
}
_WRAPPED: Final = re.compile(r"^(LowCardinality|Nullable)\((.*)\)$", re.DOTALL)
_DATE_TIME: Final = re.compile(r"^DateTime(?:\('[^']*'\))?$")
_DATE_TIME_64: Final = re.compile(r"^DateTime64\((\d)(?:, *'[^']*')?\)$")
_TEXTS: Final = ("string", "bytes")


@dataclass(frozen=True, slots=True)
class Target:
    """A table's column, as it is written.

    Args:
        name: Its name.
        type: Its type as the block names it.
        dtype: The numbers' type for numpy; None for texts.
        nullable: Whether it holds nulls.
        per_ms: A time's units in a millisecond: 0.001 in a DateTime.
    """

    name: str
    type: str
    dtype: str | None
    nullable: bool
    per_ms: float | None = None


def parse_target(name: str, server_type: str, kind: Kind) -> Target:
    """How values of a kind are written into a column.

    Args:
        name: The column's name.
        server_type: Its type as the server spells it.
        kind: What is to be written.

    Raises:
        ContractError: The column cannot hold that.
    """
    inner, nullable = server_type, False
    while match := _WRAPPED.match(inner):
        nullable = nullable or match[1] == "Nullable"
        inner = match[2]
    # Texts for a dictionary column are written plain: the server turns them over.
    written = f"Nullable({inner})" if nullable else inner
    target: Target | None = None
    if kind in _TEXTS and inner == "String":
        target = Target(name, written, None, nullable)
    elif kind == "timestamp-millis":
        target = _time_target(name, inner, written, nullable=nullable)
    elif kind in _fitting(inner):
        target = Target(name, written, _NUMBERS[inner], nullable)
    if target is None:
        raise ContractError(
            f"column '{name}' has type {server_type}, which cannot hold a record's {kind}"
        )
    return target


def _fitting(inner: str) -> tuple[Kind, ...]:
    """The kinds that a column of numbers can hold."""
    if inner == "Bool":
        return ("boolean",)
    if inner.startswith("Float"):
        return ("double", "long")
    if inner == "UInt8":
        return ("long", "boolean")
    return ("long",) if inner in _NUMBERS else ()


def _time_target(name: str, inner: str, written: str, *, nullable: bool) -> Target | None:
    if _DATE_TIME.match(inner):
        return Target(name, written, "<u4", nullable, per_ms=0.001)
    if match := _DATE_TIME_64.match(inner):
        return Target(name, written, "<i8", nullable, per_ms=10.0 ** (int(match[1]) - 3))
    if inner in ("Int64", "UInt64"):
        return Target(name, written, _NUMBERS[inner], nullable, per_ms=1.0)
    return None


def misfits(target: Target, values: pl.Series) -> NDArray[np.bool_] | None:
    """Which rows a column cannot hold: nulls where it takes none, numbers beyond its range.

    Returns:
        True for these rows; None when all fit.
    """
    bad: NDArray[np.bool_] | None = None
    if values.null_count() and not target.nullable:
        bad = values.is_null().to_numpy()
    if target.dtype is not None and values.dtype == pl.Int64 and target.dtype[1] != "f":
        low, high = _bounds(target)
        least, most = values.min(), values.max()
        if isinstance(least, int) and isinstance(most, int) and (least < low or most > high):
            outside = ~values.is_between(low, high).fill_null(value=True).to_numpy()
            bad = outside if bad is None else bad | outside
    return bad


def _bounds(target: Target) -> tuple[int, int]:
    """The least and the most that a column of whole numbers holds, in units of the values."""
    info = np.iinfo(np.dtype(target.dtype))
    low, high = int(info.min), int(info.max)
    if target.per_ms is not None:
        low, high = int(low / target.per_ms), int(high / target.per_ms)
    return max(low, -(2**63)), min(high, 2**63 - 1)


def encode_block(targets: Sequence[Target], frame: pl.DataFrame) -> bytes:
    """A block of rows.

    Args:
        targets: The columns to write.
        frame: The values, a column of the same name for each; all fit (`misfits`).
    """
    parts = [_number(len(targets)), _number(frame.height)]
    for target in targets:
        name, kind = target.name.encode(), target.type.encode()
        parts += [_number(len(name)), name, _number(len(kind)), kind]
        parts += _column(target, frame[target.name])
    return b"".join(parts)


def _column(target: Target, values: pl.Series) -> list[bytes]:
    parts = []
    if target.nullable:
        parts.append(values.is_null().to_numpy().astype(np.uint8).tobytes())
    if values.null_count() == len(values):
        size = 1 if target.dtype is None else np.dtype(target.dtype).itemsize
        parts.append(bytes(size * len(values)))
    elif target.dtype is None:
        parts.append(_texts(values))
    else:
        parts.append(_scaled(target, values).astype(target.dtype).tobytes())
    return parts


def _scaled(target: Target, values: pl.Series) -> NDArray[Any]:
    plain = values.fill_null(value=False) if values.dtype == pl.Boolean else values.fill_null(0)
    numbers = plain.to_numpy()
    if target.per_ms is None or target.per_ms == 1.0:
        return numbers
    if target.per_ms < 1:
        return numbers // round(1 / target.per_ms)
    return numbers * round(target.per_ms)


def _texts(values: pl.Series) -> bytes:
    if values.dtype == pl.Binary:
        texts = [text or b"" for text in values.to_list()]
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        return _behind_lengths(lengths, b"".join(texts))
    lengths = values.str.len_bytes().fill_null(0).to_numpy().astype(np.int64)
    joined = values.str.join("").item()
    return _behind_lengths(lengths, joined.encode())


def _behind_lengths(lengths: NDArray[np.int64], joined: bytes) -> bytes:
    """Texts, each behind its length; `joined` is all of them without."""
    sizes = np.ones(len(lengths), dtype=np.int64)
    for bits in (7, 14, 21, 28):
        sizes += lengths >= 1 << bits
    starts = np.cumsum(sizes + lengths) - sizes - lengths
    out = np.empty(int(sizes.sum()) + len(joined), dtype=np.uint8)
    is_text = np.ones(len(out), dtype=np.bool_)
    rest = lengths
    for place in range(int(sizes.max(initial=0))):
        has = sizes > place
        positions = starts[has] + place
        out[positions] = (rest[has] & 0x7F) | np.where(sizes[has] > place + 1, 0x80, 0)
        is_text[positions] = False
        rest = rest >> 7
    out[is_text] = np.frombuffer(joined, dtype=np.uint8)
    return out.tobytes()


def _number(value: int) -> bytes:
    """A variable-length number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
