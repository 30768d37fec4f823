"""A batch of Avro records as one polars frame.

The values of one batch and one schema id are joined behind an Avro container header and decoded
as a single block (https://avro.apache.org/docs/1.12.0/specification/#object-container-files) in
one `polars.read_avro` call. The wire header of each value stays where it is: the schema handed to
polars begins with a skipped `fixed` field of its size.

Joined bodies can bleed into each other when one is malformed. So every row's key field is
compared with its message's key, or, where no field equals the key, every row's wire header is read
and must be the one it begins with; and the first value stands once more at the end of the block:
it decodes to itself only when everything before it ended where it should. When either differs, or
polars fails, the batch is halved, down to a few records that fastavro reads one by one. The
result is what fastavro gives record by record, with one leniency: a nullable field's branch index
that does not exist is taken for the value's branch when all that follows it fits, and times
beyond the years 1 to 9999 are given as they stand.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.avro_bytes import long_bytes
from kstream_agg.kafka.rows import RowReader
from kstream_agg.kafka.wire import HEADER_SIZE, Rejected, by_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["ColumnBatch", "ColumnDecoder"]

_log = get_logger(__name__)

_SYNC: Final = b"kstream-agg sync"
# Below this, one more columnar call costs more than reading the records one by one.
_ROW_BY_ROW: Final = 8
_HEADER_COLUMN: Final = "wire_header"
_WIRE_FIELD: Final = {
    "name": _HEADER_COLUMN,
    "type": {"type": "fixed", "name": "kstream_wire_header", "size": HEADER_SIZE},
}
_PLAIN_TYPES: Final = ("boolean", "int", "long", "float", "double", "bytes", "string")
_PLAIN_LOGICAL_TYPES: Final = ("timestamp-millis", "timestamp-micros", "date")
# What polars raises on bytes that do not fit; a panic is no `Exception`.
_POLARS_ERRORS: Final = (PolarsError, OSError, ValueError, PanicException)


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """A decoded batch.

    Args:
        frame: The asked-for columns, in the order of the batch; times are ms since the epoch.
        rows: For each row of the frame its place in the batch.
        rejected: The records that are not in the frame, in the order of the batch.
    """

    frame: pl.DataFrame
    rows: NDArray[np.int64]
    rejected: list[Rejected]


@dataclass(frozen=True, slots=True)
class _Writer:
    """What is known of one writer's schema."""

    container: bytes
    columns: list[str]
    columnar: bool
    """Whether polars can read the schema; else its records are read one by one."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Some of a batch's records, all of one schema."""

    indexes: Sequence[int]
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]

    def halves(self) -> tuple[_Span, _Span]:
        half = len(self.values) // 2
        low, high = (
            _Span(self.indexes[part], self.values[part], self.keys[part])
            for part in (slice(0, half), slice(half, None))
        )
        return low, high


@dataclass(slots=True)
class _Result:
    """What has been decoded so far."""

    pieces: list[tuple[pl.DataFrame, NDArray[np.int64]]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, frame: pl.DataFrame, indexes: Sequence[int]) -> None:
        if isinstance(indexes, range):
            rows = np.arange(indexes.start, indexes.stop, dtype=np.int64)
        else:
            rows = np.array(indexes, dtype=np.int64)
        self.pieces.append((frame, rows))


class ColumnDecoder:
    """Decodes batches of values in the wire format into columns.

    Args:
        schema_by_id: Gives the writer's schema of an id, None when there is none.
        columns: The wanted columns with their types: `pl.String`, `pl.Int64`, `pl.Float64`,
            `pl.Boolean` or `pl.Binary` (times are `Int64`).
        key_column: The column that equals the message's key; None: keys say nothing of the values.
        nullable: Columns that may hold nulls; a record with a null in another is rejected.
    """

    def __init__(
        self,
        schema_by_id: Callable[[int], dict[str, Any] | None],
        columns: Mapping[str, type[pl.DataType]],
        key_column: str | None,
        nullable: Collection[str] = (),
    ) -> None:
        self._schema_by_id = schema_by_id
        self._types = dict(columns)
        self._key = key_column
        self._required = [name for name in columns if name not in nullable]
        self._rows = RowReader(schema_by_id, columns, key_column)
        self._writers: dict[int, _Writer] = {}

    def decode(self, values: Sequence[bytes | None], keys: Sequence[bytes | None]) -> ColumnBatch:
        """Decode one batch.

        Args:
            values: The messages' values.
            keys: Their keys, as many.

        Raises:
            UnavailableError: A schema id is not known yet and the registry does not answer.
        """
        result = _Result()
        for schema_id, indexes in by_schema(values, result.rejected).items():
            writer = self._writer(schema_id)
            if writer is None:
                error = InvalidRecordError(
                    f"the registry knows no schema with id {schema_id}", stage="decode"
                )
                result.rejected += [Rejected(index, error) for index in indexes]
            elif len(indexes) == len(values):
                self._decode_span(writer, _Span(indexes, values, keys), result)
            else:
                span = _Span(indexes, [values[i] for i in indexes], [keys[i] for i in indexes])
                self._decode_span(writer, span, result)
        frame, rows = self._join(result.pieces)
        frame, rows = self._refuse_nulls(frame, rows, result.rejected)
        result.rejected.sort(key=lambda item: item.index)
        return ColumnBatch(frame, rows, result.rejected)

    def _writer(self, schema_id: int) -> _Writer | None:
        writer = self._writers.get(schema_id)
        if writer is None:
            schema = self._schema_by_id(schema_id)
            if schema is None:
                return None
            writer = self._writers[schema_id] = _describe(
                schema, self._types, with_header=self._key is None
            )
            if not writer.columnar:
                _log.warning("this schema is read record by record", schema_id=schema_id)
        return writer

    def _decode_span(self, writer: _Writer, span: _Span, result: _Result) -> None:
        frame = self._read_block(writer, span.values, span.keys) if writer.columnar else None
        if frame is not None:
            result.add(frame, span.indexes)
            return
        if not writer.columnar or len(span.values) <= _ROW_BY_ROW:
            self._decode_rows(span, result)
            return
        for half in span.halves():
            self._decode_span(writer, half, result)

    def _decode_rows(self, span: _Span, result: _Result) -> None:
        good: list[dict[str, Any]] = []
        places: list[int] = []
        for index, value, key in zip(span.indexes, span.values, span.keys, strict=True):
            try:
                good.append(self._rows.read(value, key))
            except InvalidRecordError as error:
                result.rejected.append(Rejected(index, error))
            else:
                places.append(index)
        if good:
            result.add(pl.DataFrame(good, schema=self._types), places)

    def _read_block(
        self, writer: _Writer, values: Sequence[bytes | None], keys: Sequence[bytes | None]
    ) -> pl.DataFrame | None:
        """The values as a frame, or None when they cannot all be read so."""
        first = values[0] or b""
        try:
            block = b"".join(values) + first  # type: ignore[arg-type]  # None has been sorted out
            count = len(values) + 1
            container = b"".join(
                (writer.container, long_bytes(count), long_bytes(len(block)), block, _SYNC)
            )
            frame = pl.read_avro(io.BytesIO(container), columns=writer.columns)
            if frame.height != count or not self._is_aligned(frame, keys, first):
                return None
            # Invalid UTF-8 has shown itself: the texts that only stand guard can go.
            # Series by series: a query's start would cost more than the casts.
            return pl.DataFrame(
                [frame[name].head(count - 1).cast(dtype) for name, dtype in self._types.items()]
            )
        except _POLARS_ERRORS:
            return None

    def _is_aligned(self, frame: pl.DataFrame, keys: Sequence[bytes | None], first: bytes) -> bool:
        """Whether each row is the value of its own message."""
        if self._key is None:
            column, expected = frame[_HEADER_COLUMN], pl.Series([first[:HEADER_SIZE]])
        else:
            column = frame[self._key].cast(pl.Binary)
            expected = pl.Series([*keys, keys[0]], dtype=pl.Binary)
        return bool((column == expected).all(ignore_nulls=False))

    def _join(
        self, pieces: list[tuple[pl.DataFrame, NDArray[np.int64]]]
    ) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        if not pieces:
            return pl.DataFrame(schema=self._types), np.empty(0, dtype=np.int64)
        if len(pieces) == 1:
            return pieces[0]
        frame = pl.concat([piece[0] for piece in pieces])
        rows = np.concatenate([piece[1] for piece in pieces])
        order = np.argsort(rows)
        return frame[order], rows[order]

    def _refuse_nulls(
        self, frame: pl.DataFrame, rows: NDArray[np.int64], rejected: list[Rejected]
    ) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        for name in self._required:
            if frame[name].null_count():
                nulls = frame[name].is_null().to_numpy()
                error = InvalidRecordError(f"the field '{name}' is null", stage="validate")
                rejected += [Rejected(int(index), error) for index in rows[nulls]]
                frame, rows = frame.filter(~nulls), rows[~nulls]
        return frame, rows


def _describe(
    schema: dict[str, Any], types: Mapping[str, type[pl.DataType]], *, with_header: bool
) -> _Writer:
    """How blocks written with `schema` are read."""
    fields = schema.get("fields", []) if schema.get("type") == "record" else []
    names = {item["name"] for item in fields}
    texts = [item["name"] for item in fields if item["type"] in ("string", ["null", "string"])]
    columns = list(dict.fromkeys((*types, *texts)))
    if with_header:
        columns.append(_HEADER_COLUMN)
    whole = json.dumps(schema | {"fields": [_WIRE_FIELD, *fields]}).encode()
    entries = (b"avro.schema", whole), (b"avro.codec", b"null")
    container = b"".join(
        (
            b"Obj\x01",
            long_bytes(len(entries)),
            *(part for pair in entries for text in pair for part in (long_bytes(len(text)), text)),
            long_bytes(0),
            _SYNC,
        )
    )
    # A wanted column that is not there is told record by record.
    return _Writer(container, columns, names >= set(types) and all(map(_is_plain, fields)))


def _is_plain(item: dict[str, Any]) -> bool:
    """Whether a field is of the types polars is trusted with: not with maps and nullable enums."""
    kind = item["type"]
    if isinstance(kind, list):
        if len(kind) != 2 or "null" not in kind:
            return False
        kind = next((branch for branch in kind if branch != "null"), "null")
    if isinstance(kind, dict):
        return kind.get("logicalType") in _PLAIN_LOGICAL_TYPES
    return kind in _PLAIN_TYPES
