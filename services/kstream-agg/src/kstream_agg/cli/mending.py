"""A dead letter's value for people: shown, and mended."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from kstream_agg.core.errors import ContractError, InvalidRecordError, SettingsError
from kstream_agg.core.names import value_subject
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.verify.windows import epoch_ms

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.kafka.registry import SchemaRegistry

__all__ = ["describe_value", "edited_value", "file_value", "json_value", "record_value"]


def json_value(value: object) -> object:
    """What JSON has no form for: times as milliseconds since the epoch, bytes as base64."""
    if isinstance(value, datetime):
        return epoch_ms(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def describe_value(value: bytes | None, registry: SchemaRegistry) -> dict[str, Any]:
    """The value under a key that says what it is: `record`, `text`, `base64`, or `null`.

    Args:
        value: The bytes of the letter.
        registry: Has the schemas.

    Raises:
        UnavailableError: The registry does not answer.
    """
    if value is None:
        return {"null": None}
    try:
        return {"record": RecordDecoder(registry.schema_by_id).decode(value)}
    except InvalidRecordError:
        pass
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
    return {"text": text} if text.isprintable() else {"base64": base64.b64encode(value).decode()}


def file_value(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def record_value(text: str, topic: str, registry: SchemaRegistry, what: str) -> bytes:
    """A JSON object as a record of the topic's newest schema.

    Args:
        text: The JSON; times are milliseconds since the epoch.
        topic: Where the record is to go.
        registry: Has the schema.
        what: Names the JSON in errors.

    Raises:
        SettingsError: It is not JSON, or not an object.
        ContractError: It does not fit, or the topic has no schema.
        UnavailableError: The registry does not answer.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise SettingsError(f"{what} must hold one JSON object, the record's fields")
    found = registry.latest(value_subject(topic))
    if found is None:
        raise ContractError(
            f"the registry has no schema for topic '{topic}'",
            remedy="send the value's bytes as they are: --value-file",
        )
    schema_id, schema = found
    unknown = sorted(set(fields) - {field["name"] for field in schema.get("fields", ())})
    if unknown:
        raise ContractError(f"{what} has fields that '{topic}' does not: {', '.join(unknown)}")
    try:
        return RecordEncoder(schema, schema_id).encode(fields)
    except InvalidRecordError as error:
        raise ContractError(f"{what} does not fit '{topic}': {error}") from error


def edited_value(value: bytes | None, topic: str, registry: SchemaRegistry) -> bytes:
    """What the user makes of the value in `$EDITOR`: of a record as JSON, of a text as it is.

    Raises:
        SettingsError: Nothing was saved, or what was is wrong.
        ContractError: The value is neither, or what was saved does not fit.
        UnavailableError: The registry does not answer.
    """
    (kind, content), *_ = describe_value(value, registry).items()
    if kind not in {"record", "text"}:
        raise ContractError(
            "the value is neither a record that can be decoded nor text",
            remedy="write the right one into a file: --record-file or --value-file",
        )
    is_record = kind == "record"
    shown = json.dumps(content, default=json_value, ensure_ascii=False, indent=2)
    saved = click.edit(shown if is_record else content, extension=".json" if is_record else ".txt")
    if saved is None:
        raise SettingsError("nothing was saved in the editor: nothing is sent")
    return (
        record_value(saved, topic, registry, "the edited record") if is_record else saved.encode()
    )
