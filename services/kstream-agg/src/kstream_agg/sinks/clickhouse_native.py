"""Blocks in ClickHouse's Native format: columns as they lie in memory, one after the other.

https://clickhouse.com/docs/interfaces/formats/Native: the number of columns and of rows; for each
column its name, its type and its values. Numbers stand in little-endian order, a text behind its
length (a variable-length number), a nullable column behind a byte a row that says which are null.
All is made by numpy, nothing row by row; every server since 2016 reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kstream_agg.core.errors import ContractError
from kstream_agg.sinks.rows import Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kstream_agg.sinks.rows import Column, Rows

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


def misfits(target: Target, column: Column) -> NDArray[np.bool_] | None:
    """Which rows a table's column cannot hold.

    Those are nulls where it takes none, numbers beyond its range, and texts that are not UTF-8.

    Returns:
        True for these rows; None when all fit.
    """
    bad: NDArray[np.bool_] | None = None
    if column.nulls is not None and not target.nullable:
        bad = column.nulls
    if isinstance(column, Texts):
        found = column.not_utf8()
    elif target.dtype is not None and target.dtype[1] != "f":
        found = _outside(column.values, *_bounds(target))
    else:
        found = None
    if found is None:
        return bad
    return found if bad is None else found | bad


def _outside(values: NDArray[Any], low: int, high: int) -> NDArray[np.bool_] | None:
    if not len(values) or (int(values.min()) >= low and int(values.max()) <= high):
        return None
    outside: NDArray[np.bool_] = (values < low) | (values > high)
    return outside


def _bounds(target: Target) -> tuple[int, int]:
    """The least and the most that a column of whole numbers holds, in units of the values."""
    info = np.iinfo(np.dtype(target.dtype))
    low, high = int(info.min), int(info.max)
    if target.per_ms is not None:
        low, high = int(low / target.per_ms), int(high / target.per_ms)
    return max(low, -(2**63)), min(high, 2**63 - 1)


def encode_block(targets: Sequence[Target], pieces: Sequence[Rows]) -> bytes:
    """A block of rows.

    Args:
        targets: The columns to write.
        pieces: The rows, one piece behind the other, with a column of the same name for each
            target; all fit (`misfits`).
    """
    parts = [_number(len(targets)), _number(sum(piece.height for piece in pieces))]
    for target in targets:
        name, kind = target.name.encode(), target.type.encode()
        parts += [_number(len(name)), name, _number(len(kind)), kind]
        columns = [piece[target.name] for piece in pieces]
        if target.nullable:
            parts += map(_null_marks, columns)
        parts += [_values(target, column) for column in columns]
    return b"".join(parts)


def _null_marks(column: Column) -> bytes:
    return bytes(len(column)) if column.nulls is None else column.nulls.tobytes()


def _values(target: Target, column: Column) -> bytes:
    if isinstance(column, Texts):
        return column.behind_lengths()
    if target.per_ms is None or target.per_ms == 1.0:
        numbers = column.values
    elif target.per_ms < 1:
        numbers = column.values // round(1 / target.per_ms)
    else:
        numbers = column.values * round(target.per_ms)
    return numbers.astype(target.dtype, copy=False).tobytes()


def _number(value: int) -> bytes:
    """A variable-length number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
