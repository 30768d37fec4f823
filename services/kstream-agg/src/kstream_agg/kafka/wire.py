"""Confluent wire format: magic byte 0, schema id (4 bytes, big-endian), Avro body.

https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import fastavro

from kstream_agg.core.errors import InvalidRecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "HEADER_SIZE",
    "RecordDecoder",
    "RecordEncoder",
    "Rejected",
    "by_schema",
    "schema_id_of",
    "wire_header",
]

HEADER_SIZE: Final = 5
_MAGIC: Final = 0
_head: Callable[[bytes | None], bytes] = itemgetter(slice(0, HEADER_SIZE))  # type: ignore[assignment]  # a None raises, and is caught


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be read: its place in the batch, and why."""

    index: int
    error: InvalidRecordError


def wire_header(schema_id: int) -> bytes:
    """The five bytes before an Avro body."""
    return struct.pack(">bI", _MAGIC, schema_id)


def schema_id_of(value: bytes | None) -> int:
    """The schema id a value names.

    Raises:
        InvalidRecordError: The value is not in the wire format.
    """
    if value is None:
        raise InvalidRecordError("the record has no value", stage="decode")
    if len(value) < HEADER_SIZE or value[0] != _MAGIC:
        raise InvalidRecordError(
            "the value does not begin with the Avro wire format's header", stage="decode"
        )
    return int.from_bytes(value[1:HEADER_SIZE], "big")


def by_schema(values: Sequence[bytes | None], rejected: list[Rejected]) -> dict[int, Sequence[int]]:
    """Sort values by the schema they name.

    Args:
        values: In the wire format.
        rejected: Gets those that name none.

    Returns:
        Schema id to places in `values`.
    """
    try:
        heads = set(map(_head, values))
    except TypeError:  # a value is None
        heads = set()
    if len(heads) == 1 and len(head := heads.pop()) == HEADER_SIZE and head[0] == 0:
        return {schema_id_of(head): range(len(values))}
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        try:
            groups.setdefault(schema_id_of(value), []).append(index)
        except InvalidRecordError as error:
            rejected.append(Rejected(index, error))
    return dict(groups)


class RecordEncoder:
    """Encodes records of one schema.

    Args:
        schema: The parsed Avro schema.
        schema_id: Its id in the registry.
    """

    def __init__(self, schema: dict[str, Any], schema_id: int) -> None:
        self._schema = fastavro.parse_schema(schema)
        self._header = wire_header(schema_id)

    def encode(self, record: dict[str, Any]) -> bytes:
        """The record in the wire format.

        Raises:
            InvalidRecordError: A field is missing or does not fit its type.
        """
        buffer = io.BytesIO()
        buffer.write(self._header)
        try:
            fastavro.schemaless_writer(buffer, self._schema, record)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            raise InvalidRecordError(
                f"the record does not fit the schema: {error}", stage="encode"
            ) from error
        return buffer.getvalue()


class RecordDecoder:
    """Decodes records one by one, whatever schema each names.

    Args:
        schema_by_id: Gives the writer's schema of an id, or None when there is none.
        reader_schema: The schema the result follows; None takes the writer's.
    """

    def __init__(
        self,
        schema_by_id: Callable[[int], dict[str, Any] | None],
        reader_schema: dict[str, Any] | None = None,
    ) -> None:
        self._schema_by_id = schema_by_id
        self._reader_schema = (
            fastavro.parse_schema(reader_schema) if reader_schema is not None else None
        )
        self._writer_schemas: dict[int, Any] = {}

    def decode(self, value: bytes | None) -> dict[str, Any]:
        """The record a value holds; timestamps are aware datetimes.

        Raises:
            InvalidRecordError: Not in the wire format, an unknown schema id, or bytes that do
                not fit the schema or are left over.
        """
        schema_id = schema_id_of(value)
        schema = self._writer_schemas.get(schema_id)
        if schema is None:
            found = self._schema_by_id(schema_id)
            if found is None:
                raise InvalidRecordError(
                    f"the registry knows no schema with id {schema_id}", stage="decode"
                )
            schema = self._writer_schemas[schema_id] = fastavro.parse_schema(found)
        assert value is not None  # noqa: S101 - schema_id_of has refused None
        body = io.BytesIO(value)
        body.seek(HEADER_SIZE)
        try:
            record = fastavro.schemaless_reader(body, schema, self._reader_schema)
        except (ValueError, TypeError, EOFError, IndexError, OverflowError, KeyError) as error:
            raise InvalidRecordError(
                f"the value does not fit schema {schema_id}: {error}", stage="decode"
            ) from error
        if body.tell() != len(value):
            raise InvalidRecordError(
                f"{len(value) - body.tell()} bytes are left over behind a record of schema "
                f"{schema_id}",
                stage="decode",
            )
        if not isinstance(record, dict):
            raise InvalidRecordError(f"schema {schema_id} is not a record's", stage="decode")
        return record
