"""Records given as JSON, encoded to Avro with a schema of the registry."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.errors import ContractError, InvalidRecordError, KStreamError
from kstream_agg.proxy.outcomes import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.kafka.registry import SchemaRegistry
    from kstream_agg.kafka.wire import RecordEncoder
    from kstream_agg.proxy.requests import Schema

__all__ = ["AvroEncoders"]

# A subject's newest schema may change; one with an id never does.
_LATEST_FOR_S: Final = 30.0


class AvroEncoders:
    """Encodes JSON with schemas of the registry; blocking, call it in a thread.

    Args:
        connect: Makes the registry's client when it is first needed: it is heavy to import.
    """

    def __init__(self, connect: Callable[[], SchemaRegistry]) -> None:
        self._connect = connect
        self._registry: SchemaRegistry | None = None
        self._by_id: dict[int, tuple[RecordEncoder, Any]] = {}
        self._latest: dict[str, tuple[float, int]] = {}

    def encode(self, schema: Schema, text: bytes) -> bytes | Failure:
        """The record in the wire format, or what is wrong with it."""
        try:
            encoder, parsed = self._encoder(schema)
        except ContractError as error:
            return Failure(404, f"schema: {error}")
        except KStreamError as error:
            return Failure(503, str(error), 1)
        try:
            value = json.loads(text)
        except ValueError as error:
            return Failure(422, f"data: is not valid JSON: {error}")
        problem = _problem(value, parsed)
        if problem is not None:
            return Failure(422, problem)
        try:
            return encoder.encode(value)
        except InvalidRecordError as error:
            return Failure(422, f"data: {error}")

    def close(self) -> None:
        """Close the connections to the registry."""
        if self._registry is not None:
            self._registry.close()

    def _encoder(self, schema: Schema) -> tuple[RecordEncoder, Any]:
        number = schema.schema_id
        if number is None:
            number = self._newest(schema.subject or "")
        found = self._by_id.get(number)
        return found if found is not None else self._prepare(number)

    def _newest(self, subject: str) -> int:
        found = self._latest.get(subject)
        if found is not None and found[0] > time.monotonic():
            return found[1]
        latest = self._client().latest(subject)
        if latest is None:
            raise ContractError(f"the registry knows no subject '{subject}'")
        self._latest[subject] = (time.monotonic() + _LATEST_FOR_S, latest[0])
        return latest[0]

    def _prepare(self, number: int) -> tuple[RecordEncoder, Any]:
        # Imported here: few proxies ever encode, and it costs megabytes.
        import fastavro  # noqa: PLC0415

        from kstream_agg.kafka.wire import RecordEncoder  # noqa: PLC0415

        schema = self._client().schema_by_id(number)
        if schema is None:
            raise ContractError(f"the registry knows no schema with id {number}")
        made = self._by_id[number] = (RecordEncoder(schema, number), fastavro.parse_schema(schema))
        return made

    def _client(self) -> SchemaRegistry:
        if self._registry is None:
            self._registry = self._connect()
        return self._registry


def _problem(value: object, schema: Any) -> str | None:  # noqa: ANN401 - a schema is any JSON
    """The first field that does not fit its schema, and why; None when all fit."""
    from fastavro.validation import ValidationError, validate  # noqa: PLC0415 - as above

    name = schema.get("name", "") if isinstance(schema, dict) else ""
    if isinstance(schema, dict) and schema.get("type") == "record":
        if not isinstance(value, dict):
            return f"data: must be an object, the fields of '{name}'"
        names = {field["name"] for field in schema["fields"]}
        unknown = sorted(value.keys() - names)
        if unknown:
            return f"data.{unknown[0]}: the schema has no such field"
        missing = [
            field["name"]
            for field in schema["fields"]
            if field["name"] not in value and "default" not in field
        ]
        if missing:
            return f"data.{missing[0]}: is missing and has no default"
    try:
        validate(value, schema, raise_errors=True)
    except ValidationError as error:
        first = error.errors[0]
        where = str(first.field or "").removeprefix(name)
        return f"data{'.' if where and not where.startswith('.') else ''}{where}: {first}"
    return None
