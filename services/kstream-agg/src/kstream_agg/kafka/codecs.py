"""What stands in a record's value: codecs a writer encodes with and a reader decodes with.

A codec of one's own is any object with the two methods of `Codec`. None is never encoded: it is a
tombstone in every format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder

if TYPE_CHECKING:
    from kstream_agg.kafka.registry import SchemaRegistry

__all__ = ["AvroCodec", "Codec", "JsonCodec", "MessagePackCodec", "TextCodec"]

T = TypeVar("T")


class Codec(Protocol[T]):
    """Turns values into bytes and back."""

    def encode(self, value: T, topic: str, /) -> bytes:
        """The bytes of a value that is written to `topic`.

        Raises:
            InvalidRecordError: It cannot be encoded.
        """

    def decode(self, data: bytes, topic: str, /) -> T:
        """The value of bytes that were read from `topic`.

        Raises:
            InvalidRecordError: They cannot be decoded.
        """


class TextCodec:
    """Texts in UTF-8."""

    def encode(self, value: str, _topic: str, /) -> bytes:
        """The text's bytes."""
        return value.encode()

    def decode(self, data: bytes, topic: str, /) -> str:
        """The text.

        Raises:
            InvalidRecordError: The bytes are not UTF-8.
        """
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRecordError(f"a value in '{topic}': {error}", stage="decode") from error


class _MsgspecCodec(Generic[T]):
    """What JSON and MessagePack share: any type that msgspec knows."""

    _name = ""

    def __init__(self, encoder: Any, decoder: Any) -> None:  # noqa: ANN401 - two unrelated pairs
        self._encode = encoder.encode
        self._decode = decoder.decode

    def encode(self, value: T, topic: str, /) -> bytes:
        """The value's bytes.

        Raises:
            InvalidRecordError: It holds what the format has no form for.
        """
        try:
            encoded: bytes = self._encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRecordError(
                f"a value for '{topic}' has no {self._name} form: {error}", stage="encode"
            ) from error
        return encoded

    def decode(self, data: bytes, topic: str, /) -> T:
        """The bytes' value.

        Raises:
            InvalidRecordError: They are not of this format, or not of the type.
        """
        try:
            value: T = self._decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRecordError(
                f"a value in '{topic}' is not the {self._name} expected: {error}", stage="decode"
            ) from error
        return value


class JsonCodec(_MsgspecCodec[T]):
    """JSON of any type msgspec knows: dicts, dataclasses, `msgspec.Struct`, datetimes and more.

    Args:
        kind: What is decoded into, and checked; default: whatever the JSON says.
    """

    _name = "JSON"

    def __init__(self, kind: type[T] | Any = Any) -> None:  # noqa: ANN401 - Any is the default
        super().__init__(msgspec.json.Encoder(), msgspec.json.Decoder(kind))


class MessagePackCodec(_MsgspecCodec[T]):
    """MessagePack of any type msgspec knows.

    Args:
        kind: What is decoded into, and checked; default: whatever the bytes say.
    """

    _name = "MessagePack"

    def __init__(self, kind: type[T] | Any = Any) -> None:  # noqa: ANN401 - Any is the default
        super().__init__(msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(kind))


class AvroCodec:
    """Avro in Confluent's wire format, its schema in the registry under `{topic}-value`.

    A schema is registered with the first record for a topic, under BACKWARD compatibility.

    Args:
        registry: Where schemas are.
        schema: The parsed schema of what is written; a reader needs none.
    """

    def __init__(self, registry: SchemaRegistry, schema: dict[str, Any] | None = None) -> None:
        self._registry = registry
        self._schema = schema
        self._encoders: dict[str, RecordEncoder] = {}
        self._decoder = RecordDecoder(registry.schema_by_id)

    def encode(self, value: dict[str, Any], topic: str, /) -> bytes:
        """The record in the wire format.

        Raises:
            InvalidRecordError: It does not fit the schema, or there is none to write with.
            SchemaIncompatibleError: The registry refuses the schema.
            UnavailableError: The registry does not answer.
        """
        encoder = self._encoders.get(topic)
        if encoder is None:
            if self._schema is None:
                raise InvalidRecordError(
                    f"no schema to write to '{topic}' with: AvroCodec(registry, schema)",
                    stage="encode",
                )
            schema_id = self._registry.register_value(topic, self._schema)
            encoder = self._encoders[topic] = RecordEncoder(self._schema, schema_id)
        return encoder.encode(value)

    def decode(self, data: bytes, _topic: str, /) -> dict[str, Any]:
        """The record, by the schema it names.

        Raises:
            InvalidRecordError: It is not in the wire format, or does not fit its schema.
            UnavailableError: The registry does not answer.
        """
        return self._decoder.decode(data)
