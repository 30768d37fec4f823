"""Records: as a program writes them, and as it reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from kstream_agg.kafka.codecs import Codec

if TYPE_CHECKING:
    from kstream_agg.kafka.writer import HeaderPairs

__all__ = ["ReceivedRecord", "Record"]

T = TypeVar("T")


class Record(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A record to write.

    Args:
        value: What the writer's codec encodes; None is a tombstone, which deletes the key from a
            compacted topic.
        key: Decides the partition: records of one key stay in order. None spreads at random.
        headers: Name and value pairs, in order; names may repeat.
        timestamp: When it happened (aware); None is the time of writing. Topics with
            `LogAppendTime` put the broker's time in its place.
    """

    value: T | None
    key: bytes | str | None = None
    headers: tuple[tuple[str, str | bytes | None], ...] = ()
    timestamp: datetime | None = None


class ReceivedRecord(msgspec.Struct, Generic[T], frozen=True, eq=False, gc=False):
    """A record that was read, and where it stands. Its parts are decoded when asked for.

    Attributes:
        message: The client's own message.
        codec: Decodes the value; None: it stays bytes.
    """

    message: Message
    codec: Codec[T] | None

    @property
    def value(self) -> T | None:
        """The decoded value; None is a tombstone.

        Raises:
            InvalidRecordError: The codec cannot decode it.
        """
        raw: Any = self.message.value()
        if self.codec is None or raw is None:
            return raw  # type: ignore[no-any-return]  # without a codec, T is bytes
        return self.codec.decode(raw, self.topic)

    @property
    def raw(self) -> bytes | None:
        """The value's bytes."""
        raw: Any = self.message.value()
        return raw  # type: ignore[no-any-return]  # theirs may be a text, for deserializers

    @property
    def key(self) -> bytes | None:
        """The key's bytes."""
        key: Any = self.message.key()
        return key  # type: ignore[no-any-return]  # as above

    @property
    def headers(self) -> HeaderPairs:
        """Name and value pairs, in order."""
        found: Any = self.message.headers()
        return tuple(found or ())

    @property
    def timestamp(self) -> datetime | None:
        """The record's time, UTC; None when it has none."""
        kind, at_ms = self.message.timestamp()
        if kind == TIMESTAMP_NOT_AVAILABLE:
            return None
        return datetime.fromtimestamp(at_ms / 1000, UTC)

    @property
    def topic(self) -> str:
        """The topic it stands in."""
        return self.message.topic() or ""

    @property
    def partition(self) -> int:
        """The partition it stands in."""
        return self.message.partition() or 0

    @property
    def offset(self) -> int:
        """Its place in the partition."""
        return self.message.offset() or 0

    def __repr__(self) -> str:
        return f"<record {self.topic}/{self.partition}/{self.offset}>"
