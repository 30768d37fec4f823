"""Reading single records into the types of a column batch: the slow, certain way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.kafka.wire import RecordDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["RowReader"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_PYTHON_TYPES: Final[dict[type[pl.DataType], tuple[type, ...]]] = {
    pl.String: (str,),
    pl.Int64: (int,),
    pl.Float64: (float, int),
    pl.Boolean: (bool,),
    pl.Binary: (bytes,),
}


class RowReader:
    """Reads the wanted fields of one record at a time.

    Args:
        schema_by_id: Gives the writer's schema of an id, None when there is none.
        columns: The wanted fields with their types.
        key_column: The field that equals the message's key; None: no field has to.
    """

    def __init__(
        self,
        schema_by_id: Callable[[int], dict[str, Any] | None],
        columns: Mapping[str, type[pl.DataType]],
        key_column: str | None,
    ) -> None:
        self._decoder = RecordDecoder(schema_by_id)
        self._types = dict(columns)
        self._key = key_column

    def read(self, value: bytes | None, key: bytes | None) -> dict[str, Any]:
        """The wanted fields of a value; times are ms since the epoch, nulls stay.

        Raises:
            InvalidRecordError: The value cannot be decoded, a field is missing or of another
                type, or the key field differs from the key.
        """
        record = self._decoder.decode(value)
        row = {name: self._field(record, name, dtype) for name, dtype in self._types.items()}
        named = row[self._key] if self._key is not None else None
        if isinstance(named, str) and (key is None or named.encode() != key):
            shown = "null" if key is None else f"'{key.decode('utf-8', 'replace')}'"
            raise InvalidRecordError(
                f"the record's key is {shown}, its {self._key} '{named}'", stage="validate"
            )
        return row

    @staticmethod
    def _field(record: dict[str, Any], name: str, dtype: type[pl.DataType]) -> object:
        try:
            found: object = record[name]
        except KeyError as error:
            raise InvalidRecordError(
                f"the record's schema has no field '{name}'", stage="decode"
            ) from error
        if isinstance(found, datetime):
            found = (found - _EPOCH) // _MILLISECOND
        if found is None or isinstance(found, _PYTHON_TYPES[dtype]):
            return found
        raise InvalidRecordError(
            f"the field '{name}' holds a {type(found).__name__}", stage="decode"
        )
