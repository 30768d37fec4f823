"""What a body of `POST /push` says, and where it is wrong.

Two decoders: the first takes what nearly every client sends, `data` as a JSON string, at the cost
of one pass; what it refuses is read again by the second, which keeps `data` as the bytes it stood
in the body. A body that both refuse is read once more by the standard library, which knows at
which character JSON ends to be JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from kstream_agg.proxy.outcomes import Failure

__all__ = ["Decoded", "MalformedBodyError", "Schema", "WireRecord", "decode_push", "topic_failure"]

# Kafka's own rule for topic names.
_TOPIC: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
# A \\u escape of a surrogate that has no other half beside it.
_HALF_A_PAIR: Final = re.compile(
    r"(?<!\\)\\u(?:d[89ab][0-9a-f]{2}(?!\\ud[c-f])|d[c-f][0-9a-f]{2})", re.IGNORECASE
)
_MAX_INT64: Final = 2**63 - 1
_MAX_INT32: Final = 2**31 - 1
_SCHEMA_NEEDS_JSON: Final = "a schema needs 'data' as a JSON value, not 'data_base64'"

HeaderField = dict[str, str | None] | list[tuple[str, str | None]] | None


class MalformedBodyError(Exception):
    """The body is not what `POST /push` takes; the text says why and where."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The Avro schema a record's data is to be encoded with: a subject's newest, or one by id."""

    subject: str | None
    schema_id: int | None


class _Fields(msgspec.Struct):
    topic: str
    key: str | None = None
    headers: HeaderField = None
    data_base64: str | None = None
    schema_subject: str | None = None


class _WholeNumbers(_Fields):
    partition: int | None = None
    timestamp: int | None = None
    schema_id: int | None = None


class WireRecord(_WholeNumbers, kw_only=True):
    """One record of a request; `data` is None for a tombstone."""

    data: str | bytes | None


class _TextRecord(_WholeNumbers, kw_only=True):
    data: str


class _AnyRecord(_Fields, kw_only=True):
    # JSON knows one kind of number: 3.0 is as whole as 3.
    partition: float | None = None
    timestamp: float | int | None = None
    schema_id: float | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _TextPush(msgspec.Struct):
    records: list[_TextRecord]
    wait_for_send: bool | None = False


class _AnyPush(msgspec.Struct):
    records: list[_AnyRecord]
    wait_for_send: bool | None = False


class Decoded(msgspec.Struct):
    """A request.

    Args:
        records: Its records.
        wait: Whether the client waits for the delivery.
        failures: What is wrong with single records, by their place.
        schemas: Which records are to be encoded to Avro, by their place.
    """

    records: list[Any]
    wait: bool
    failures: dict[int, Failure] = {}
    schemas: dict[int, Schema] = {}


_decode_text: Final = msgspec.json.Decoder(_TextPush).decode
_decode_any: Final = msgspec.json.Decoder(_AnyPush).decode
_decode_str: Final = msgspec.json.Decoder(str).decode


def decode_push(body: bytes) -> Decoded:
    """Read a request's body.

    Raises:
        MalformedBodyError: It is not JSON, or its shape is wrong; the message says where.
    """
    try:
        push = _decode_text(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_slowly(body)
    failures: dict[int, Failure] = {}
    schemas: dict[int, Schema] = {}
    for index, record in enumerate(push.records):
        if (
            record.data_base64 is not None
            or record.schema_id is not None
            or record.schema_subject is not None
        ):
            return _decode_slowly(body)
        if record.partition is not None or record.timestamp is not None:
            _check_numbers(record, index, failures)
    return Decoded(push.records, push.wait_for_send is True, failures, schemas)


def topic_failure(topic: str) -> Failure | None:
    """Why no topic can have this name; None when one can."""
    if _TOPIC.fullmatch(topic):
        return None
    return Failure(
        422,
        f"topic: '{topic[:60]}' is no topic name: 1 to 249 of letters, digits, '.', '_' and '-'",
    )


def _decode_slowly(body: bytes) -> Decoded:
    try:
        body.decode()  # raw values are not looked into
        push = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBodyError(_where(body, error)) from error
    records: list[WireRecord] = []
    failures: dict[int, Failure] = {}
    schemas: dict[int, Schema] = {}
    for index, raw in enumerate(push.records):
        record = WireRecord(
            topic=raw.topic,
            key=raw.key,
            headers=raw.headers,
            partition=_whole(raw.partition, "partition", index, failures),
            timestamp=_whole(raw.timestamp, "timestamp", index, failures),
            schema_id=_whole(raw.schema_id, "schema_id", index, failures),
            schema_subject=raw.schema_subject,
            data=None,
        )
        _check_numbers(record, index, failures)
        record.data = _value(raw, record, index, failures, schemas)
        records.append(record)
    return Decoded(records, push.wait_for_send is True, failures, schemas)


def _whole(number: float | None, name: str, index: int, failures: dict[int, Failure]) -> int | None:
    if number is None or isinstance(number, int):
        return number
    if number.is_integer():
        return int(number)
    failures[index] = Failure(422, f"{name}: must be a whole number")
    return None


def _value(
    raw: _AnyRecord,
    record: WireRecord,
    index: int,
    failures: dict[int, Failure],
    schemas: dict[int, Schema],
) -> str | bytes | None:
    wants_schema = record.schema_id is not None or record.schema_subject is not None
    if raw.data_base64 is not None:
        if isinstance(raw.data, msgspec.UnsetType) and not wants_schema:
            return _from_base64(raw.data_base64, index, failures)
        why = _SCHEMA_NEEDS_JSON if wants_schema else "give either 'data' or 'data_base64'"
        failures[index] = Failure(422, f"data_base64: {why}")
        return None
    if isinstance(raw.data, msgspec.UnsetType):
        failures[index] = Failure(422, "data: is missing ('data' or 'data_base64')")
        return None
    text = bytes(raw.data)
    if wants_schema:
        if record.schema_id is not None and record.schema_subject is not None:
            failures[index] = Failure(422, "schema_id: give either it or 'schema_subject'")
        schemas[index] = Schema(record.schema_subject, record.schema_id)
        return text
    return None if text == b"null" else _plain_value(text, index)


def _plain_value(text: bytes, index: int) -> str | bytes:
    """A JSON string's text, any other JSON value as it stands."""
    if not text.startswith(b'"'):
        return text
    try:
        return _decode_str(text)
    except msgspec.DecodeError as error:
        raise MalformedBodyError(f"the string in records[{index}].data is not valid") from error


def _from_base64(text: str, index: int, failures: dict[int, Failure]) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        failures[index] = Failure(422, f"data_base64: is not base64: {error}")
        return None


def _check_numbers(record: _WholeNumbers, index: int, failures: dict[int, Failure]) -> None:
    if record.partition is not None and not -1 <= record.partition <= _MAX_INT32:
        failures[index] = Failure(422, "partition: must be 0 or more, or -1 for any")
    if record.schema_id is not None and not 1 <= record.schema_id <= _MAX_INT32:
        failures[index] = Failure(422, "schema_id: must be 1 or more")
    if record.schema_subject == "":
        failures[index] = Failure(422, "schema_subject: must not be empty")
    if record.timestamp is not None and not 0 < record.timestamp <= _MAX_INT64:
        failures[index] = Failure(422, "timestamp: must be milliseconds since the epoch, above 0")


def _where(body: bytes, error: Exception) -> str:
    """What is wrong with a body, and at which byte, line and column."""
    if not body.strip():
        return "the body is empty: a JSON object with 'records' is expected"
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as found:
        return f"the body is not UTF-8: invalid byte at byte {found.start}"
    try:
        json.loads(text)
    except json.JSONDecodeError as found:
        place = len(text[: found.pos].encode())
        return (
            f"the body is not valid JSON: {found.msg} at byte {place} "
            f"(line {found.lineno}, column {found.colno})"
        )
    except RecursionError:
        return "the body is nested too deeply"
    half = _HALF_A_PAIR.search(text)
    if half is not None and not isinstance(error, msgspec.ValidationError):
        place = len(text[: half.start()].encode())
        return f"the body is not valid JSON: {half.group()} is half a character, at byte {place}"
    return f"the body is not a push request: {error}"
