"""A batch of Avro records as columns, decoded field by field for all records at once.

A cursor for each record stands at the same field; reading the field moves all of them
(https://avro.apache.org/docs/1.12.0/specification/#binary-encoding). Each record is read from its
own first byte and must end at its own last: one that is malformed says nothing of its neighbours.
Texts are left where they are, and are not checked to be UTF-8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kstream_agg.kafka.wire import HEADER_SIZE
from kstream_agg.sinks.rows import Numbers, Rows, Texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from kstream_agg.sinks.rows import Column

__all__ = ["RowsDecoder"]

# A whole number of 64 bits has at most ten bytes of seven, the last of them a single bit.
_NUMBER_BYTES: Final = 10
_FLOATS: Final[dict[str, np.dtype[Any]]] = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}
_TEXTS: Final = ("string", "bytes")


@dataclass(frozen=True, slots=True)
class _Field:
    """What a field holds: an Avro type, and which branch of its union is null, if it has one."""

    name: str
    type: str
    null_branch: int | None

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> _Field:
        kind, null_branch = item["type"], None
        if isinstance(kind, list):
            null_branch = kind.index("null")
            kind = kind[1 - null_branch]
        return cls(item["name"], kind["type"] if isinstance(kind, dict) else kind, null_branch)


class RowsDecoder:
    """Decodes records of one schema.

    Args:
        schema: A record's, with fields of plain types (numbers, booleans, texts, bytes, logical
            types on them) or unions of one with null.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._fields = [_Field.of(item) for item in schema["fields"]]

    def decode(self, values: Sequence[bytes]) -> tuple[Rows, NDArray[np.bool_] | None]:
        """Decode values in the wire format, whose headers name the schema.

        Returns:
            The rows of the well-formed ones (times as they stand, a `float` as a double), and
            which values are not: True for these, None when all are well-formed.
        """
        cursors = _Cursors(values, len(self._fields))
        columns = {field.name: cursors.read(field) for field in self._fields}
        bad = cursors.failed()
        if bad is None:
            return Rows(columns, len(values)), None
        # What was read behind a field that does not fit means nothing.
        good = [value for value, is_bad in zip(values, bad, strict=True) if not is_bad]
        return self.decode(good)[0], bad


class _Cursors:
    """A place in each of some records, all before the same field.

    Args:
        values: The records, in the wire format.
        fields: How many will be read.
    """

    def __init__(self, values: Sequence[bytes], fields: int) -> None:
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        self._ends = np.cumsum(lengths)
        self._at = self._ends - lengths + HEADER_SIZE
        self._bad = np.zeros(len(values), dtype=np.bool_)
        # Numbers are looked for behind a record's end too: it shows when all is read.
        room = bytes(HEADER_SIZE + (fields + 1) * (_NUMBER_BYTES + 1))
        self._buffer = np.frombuffer(b"".join((*values, room)), dtype=np.uint8)

    def failed(self) -> NDArray[np.bool_] | None:
        """The records that are malformed; None when there are none."""
        bad = self._bad | (self._at != self._ends)
        return bad if bad.any() else None

    def read(self, field: _Field) -> Column:
        """The next field of all records."""
        if field.null_branch is None:
            return self._read(field.type, slice(None))
        branches = self._buffer[self._at]
        self._at += 1
        # A branch's number, 0 or 1, stands there doubled.
        self._bad |= (branches & 0xFD) != 0
        nulls = branches == 2 * field.null_branch
        if not nulls.any():
            return self._read(field.type, slice(None))
        count = len(nulls)
        present = np.flatnonzero(~nulls)
        column = self._read(field.type, present)
        if isinstance(column, Texts):
            starts, lengths = np.zeros((2, count), dtype=np.int64)
            starts[present], lengths[present] = column.starts, column.lengths
            return Texts(self._buffer, starts, lengths, nulls, column.is_text)
        values = np.zeros(count, dtype=column.values.dtype)
        values[present] = column.values
        return Numbers(values, nulls)

    def _read(self, kind: str, which: slice | NDArray[np.int64]) -> Column:
        """A value of each chosen record, which has one."""
        if kind in _TEXTS:
            lengths = self._read_whole(which)
            starts = self._at[which].copy()
            wrong = (lengths < 0) | (lengths > self._ends[which] - starts)
            if wrong.any():
                self._bad[which] |= wrong
                lengths[wrong] = 0
            self._at[which] += lengths
            return Texts(self._buffer, starts, lengths, None, kind == "string")
        if kind in _FLOATS:
            found = self._at_any_byte(_FLOATS[kind])[self._at[which]]
            self._at[which] += found.itemsize
            return Numbers(found.astype(np.float64, copy=False))
        if kind == "boolean":
            values = self._buffer[self._at[which]]
            self._at[which] += 1
            return Numbers(values != 0)
        return Numbers(self._read_whole(which))

    def _at_any_byte(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The number that would begin at each byte."""
        count = len(self._buffer) - dtype.itemsize + 1
        return np.ndarray((count,), dtype, self._buffer, strides=(1,))

    def _read_whole(self, which: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        """Whole numbers: seven bits a byte, the lowest first; a byte's highest bit says "more"."""
        at = self._at[which]
        byte = self._buffer[at]
        found = (byte & 0x7F).astype(np.uint64)
        at = at + 1
        more = np.flatnonzero(byte >= 0x80)
        for place in range(1, _NUMBER_BYTES):
            if not len(more):
                break
            # All numbers of a column have often as many bytes: then nothing is picked out.
            chosen = slice(None) if len(more) == len(at) else more
            byte = self._buffer[at[chosen]]
            found[chosen] |= (byte & 0x7F).astype(np.uint64) << np.uint64(7 * place)
            at[chosen] += 1
            if place == _NUMBER_BYTES - 1:
                too_long = np.arange(len(self._bad))[which][more][byte > 1]
                self._bad[too_long] = True
            more = more[byte >= 0x80]
        self._at[which] = at
        # Zigzag: 0, -1, 1, -2 … stand there as 0, 1, 2, 3 …
        sign = (found & np.uint64(1)).view(np.int64)
        whole: NDArray[np.int64] = (found >> np.uint64(1)).view(np.int64) ^ -sign
        return whole
