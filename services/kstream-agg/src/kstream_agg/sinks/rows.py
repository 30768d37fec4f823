"""Rows by columns, in numpy arrays: what a sink holds between Kafka and a table.

Texts are not copied: a column of them says where each stands in the bytes that were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Column", "Numbers", "Rows", "Texts"]

# A length from 2 to this on has one more byte.
_MORE_BYTES_FROM: Final = (7, 14, 21, 28)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of whole numbers, floating-point numbers or truth values.

    Args:
        values: One a row; zero where there is none.
        nulls: True for rows without a value; None: all have one.
    """

    values: NDArray[Any]
    nulls: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, chosen: slice | NDArray[np.bool_]) -> Numbers:
        """Some of the rows."""
        return Numbers(self.values[chosen], None if self.nulls is None else self.nulls[chosen])

    def item(self, row: int) -> int | float | bool | None:
        """The value of a row."""
        if self.nulls is not None and self.nulls[row]:
            return None
        found: int | float | bool = self.values[row].item()
        return found


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of texts or bytes.

    Args:
        buffer: Bytes, among them those of all rows; other columns' may stand there too.
        starts: Where a row's begin in the buffer.
        lengths: How many they are, in bytes; 0 for rows without a value.
        nulls: True for rows without a value; None: all have one.
        is_text: Whether they have to be UTF-8.
    """

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    nulls: NDArray[np.bool_] | None = None
    is_text: bool = True
    _joined: list[bytes] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, values: Sequence[bytes | None], *, is_text: bool = False) -> Texts:
        """A column of these values."""
        present = [value or b"" for value in values]
        lengths = np.fromiter(map(len, present), dtype=np.int64, count=len(present))
        nulls = None
        if None in values:
            missing = (value is None for value in values)
            nulls = np.fromiter(missing, dtype=np.bool_, count=len(present))
        buffer = np.frombuffer(b"".join(present), dtype=np.uint8)
        return cls(buffer, np.cumsum(lengths) - lengths, lengths, nulls, is_text)

    @classmethod
    def repeated(cls, value: str, count: int) -> Texts:
        """A column of one text again and again."""
        buffer = np.frombuffer(value.encode(), dtype=np.uint8)
        starts, lengths = np.zeros(count, np.int64), np.full(count, len(buffer), np.int64)
        joined = _behind_lengths(buffer, starts[:1], lengths[:1]) * count
        return cls(buffer, starts, lengths, _joined=[joined])

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, chosen: slice | NDArray[np.bool_]) -> Texts:
        """Some of the rows."""
        nulls = None if self.nulls is None else self.nulls[chosen]
        return Texts(self.buffer, self.starts[chosen], self.lengths[chosen], nulls, self.is_text)

    def item(self, row: int) -> bytes | None:
        """The bytes of a row."""
        if self.nulls is not None and self.nulls[row]:
            return None
        return self._bytes(row)

    def not_utf8(self) -> NDArray[np.bool_] | None:
        """The rows whose texts are not UTF-8; None when all are, or none has to be."""
        if not self.is_text or self.behind_lengths().isascii():
            return None
        found = np.fromiter(
            (not _is_utf8(self._bytes(row)) for row in range(len(self))), np.bool_, len(self)
        )
        return found if found.any() else None

    def behind_lengths(self) -> bytes:
        """All texts, each behind its length: a number of seven bits a byte, the lowest first.

        It is made once: who asks whether all is ASCII has it made for who writes it.
        """
        if not self._joined:
            self._joined.append(_behind_lengths(self.buffer, self.starts, self.lengths))
        return self._joined[0]

    def _bytes(self, row: int) -> bytes:
        start = int(self.starts[row])
        return self.buffer[start : start + int(self.lengths[row])].tobytes()


def _behind_lengths(
    buffer: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> bytes:
    longest = int(lengths.max(initial=0))
    if longest == 0:
        return bytes(len(lengths))
    sizes = np.ones(len(lengths), dtype=np.int64)
    for bits in _MORE_BYTES_FROM:
        if longest >> bits:
            sizes += lengths >= 1 << bits
    whole = sizes + lengths
    ends = np.cumsum(whole)
    places = ends - whole
    # Each text with the bytes before it, in whose place its length is then written.
    index = np.repeat(starts - sizes - places, whole)
    index += np.arange(len(index))
    out = buffer.take(index, mode="wrap")
    rest = lengths
    for byte in range(int(sizes.max())):
        has = slice(None) if byte == 0 else sizes > byte
        more = np.where(sizes[has] > byte + 1, 0x80, 0)
        out[places[has] + byte] = (rest[has] & 0x7F) | more
        rest = rest >> 7
    return out.tobytes()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


Column: TypeAlias = Numbers | Texts


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of the same height.

    Args:
        columns: By name.
        height: How many rows.
    """

    columns: Mapping[str, Column]
    height: int

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def take(self, chosen: slice | NDArray[np.bool_]) -> Rows:
        """Some of the rows.

        Args:
            chosen: From where to where, or True for each that is wanted.
        """
        if isinstance(chosen, slice):
            height = len(range(*chosen.indices(self.height)))
        else:
            height = int(np.count_nonzero(chosen))
        return Rows({name: each.take(chosen) for name, each in self.columns.items()}, height)
