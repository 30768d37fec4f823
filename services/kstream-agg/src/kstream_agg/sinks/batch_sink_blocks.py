"""From Kafka's messages to columns: the map of the batch-sink.

Values in the Avro wire format are decoded at once (`avro_rows`), those of each schema into a piece
of their own; of other values the bytes are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from confluent_kafka import Message

from kstream_agg.core.errors import ContractError, InvalidRecordError
from kstream_agg.kafka.wire import RecordDecoder, Rejected, by_schema
from kstream_agg.sinks.avro_rows import RowsDecoder
from kstream_agg.sinks.clickhouse_tables import BARE_PLACE, KAFKA_PLACE, Field, Shape
from kstream_agg.sinks.rows import Numbers, Rows, Texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from kstream_agg.pipeline.mapping import PolledBatch
    from kstream_agg.sinks.rows import Column

__all__ = [
    "RAW_SHAPE",
    "AvroBlocks",
    "Block",
    "BlockMaker",
    "Piece",
    "RawBlocks",
    "shape_of",
]

RAW_SHAPE: Final = Shape(
    BARE_PLACE,
    (Field("key", "bytes", nullable=True), Field("value", "bytes", nullable=True)),
    optional=True,
)
"""Of records that are not decoded; a table of one's own need not have all columns."""

_KINDS: Final = ("string", "bytes", "long", "timestamp-millis", "double", "boolean")
_AS_KIND: Final = {"int": "long", "float": "double"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one topic and one shape.

    Args:
        topic: Where they come from.
        shape: Their columns.
        rows: The rows, of one partition, in the order of their offsets.
        places: For each row its record's place among those of the block.
    """

    topic: str
    shape: Shape
    rows: Rows
    places: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """What one poll has brought of a partition.

    Args:
        pieces: Its rows.
        records: How many.
        size: Bytes of their keys and values.
    """

    pieces: tuple[Piece, ...]
    records: int
    size: int


class BlockMaker(Protocol):
    """Makes a block of polled messages."""

    def to_rows(self, batch: PolledBatch) -> Block:
        """The map.

        Raises:
            UnavailableError: A schema is needed, and the registry does not answer.
        """


class RawBlocks:
    """Keeps keys and values as they are."""

    def to_rows(self, batch: PolledBatch) -> Block:
        """The map; see `BlockMaker`."""
        messages = batch.messages
        keys, values = _parts(messages, Message.key), _parts(messages, Message.value)
        columns = _place_columns(RAW_SHAPE, batch.partition, messages)
        columns |= {"key": Texts.of(keys), "value": Texts.of(values)}
        count = len(messages)
        piece = Piece(batch.partition.topic, RAW_SHAPE, Rows(columns, count), np.arange(count))
        return Block((piece,), count, _size(keys) + _size(values))


class AvroBlocks:
    """Decodes values in the Avro wire format.

    Args:
        schema_by_id: Gives the schema of an id, None when there is none.
    """

    def __init__(self, schema_by_id: Callable[[int], dict[str, Any] | None]) -> None:
        self._schema_by_id = schema_by_id
        self._decoders: dict[int, tuple[RowsDecoder, Shape]] = {}
        self._single = RecordDecoder(schema_by_id)

    def to_rows(self, batch: PolledBatch) -> Block:
        """The map; what cannot be decoded is rejected. See `BlockMaker`."""
        messages = batch.messages
        values = _parts(messages, Message.value)
        rejected: list[Rejected] = []
        decoded = [
            self._decode(schema_id, indexes, values, rejected)
            for schema_id, indexes in by_schema(values, rejected).items()
        ]
        for refusal in rejected:
            batch.reject(refusal.index, refusal.error)
        # Behind the map, a record's place is that among the records that are left.
        left = np.ones(len(messages), dtype=np.int64)
        left[[refusal.index for refusal in rejected]] = 0
        place_of = np.cumsum(left) - 1
        pieces = []
        for shape, rows, indexes in decoded:
            if shape is not None and rows.height:
                chosen = (
                    messages if rows.height == len(messages) else [messages[i] for i in indexes]
                )
                place = _place_columns(shape, batch.partition, chosen)
                whole = Rows({**rows.columns, **place}, rows.height)
                pieces.append(Piece(batch.partition.topic, shape, whole, place_of[indexes]))
        return Block(tuple(pieces), int(left.sum()), _size(values))

    def _decode(
        self,
        schema_id: int,
        indexes: Sequence[int],
        values: Sequence[bytes | None],
        rejected: list[Rejected],
    ) -> tuple[Shape | None, Rows, NDArray[np.int64]]:
        """The rows of one schema, and their places among all values."""
        places = np.asarray(indexes, dtype=np.int64)
        try:
            decoder, shape = self._decoder(schema_id)
        except InvalidRecordError as error:
            rejected += [Rejected(int(index), error) for index in places]
            return None, Rows({}, 0), places[:0]
        chosen: Any = values if len(places) == len(values) else [values[i] for i in indexes]
        rows, bad = decoder.decode(chosen)
        if bad is not None:
            rejected += [Rejected(int(i), self._what_is_wrong(values[i])) for i in places[bad]]
            places = places[~bad]
        return shape, rows, places

    def _what_is_wrong(self, value: bytes | None) -> InvalidRecordError:
        """Why a value cannot be decoded, from the decoder of single records."""
        try:
            self._single.decode(value)
        except InvalidRecordError as error:
            return error
        return InvalidRecordError("the value is not as Avro writes it", stage="decode")

    def _decoder(self, schema_id: int) -> tuple[RowsDecoder, Shape]:
        known = self._decoders.get(schema_id)
        if known is None:
            schema = self._schema_by_id(schema_id)
            if schema is None:
                raise InvalidRecordError(
                    f"the registry knows no schema with id {schema_id}", stage="decode"
                )
            try:
                shape = shape_of(schema)
            except ContractError as error:
                raise InvalidRecordError(str(error), stage="decode") from error
            known = self._decoders[schema_id] = (RowsDecoder(schema), shape)
        return known


def shape_of(schema: Mapping[str, Any]) -> Shape:
    """The columns of a record schema.

    Raises:
        ContractError: It is not a record's, a field is of a type that no column is made for, or is
            named as a column of its place in Kafka.
    """
    if schema.get("type") != "record":
        raise ContractError("the values' schema is not a record's", remedy=_REMEDY)
    fields = tuple(_field(item) for item in schema["fields"])
    taken = {*KAFKA_PLACE.key, KAFKA_PLACE.timestamp}.intersection(field.name for field in fields)
    if taken:
        raise ContractError(
            f"field '{min(taken)}' is named as the column of a record's place in Kafka",
            remedy=_REMEDY,
        )
    return Shape(KAFKA_PLACE, fields)


_REMEDY: Final = "set sink.values to raw: such values are then written as their bytes"


def _field(item: Mapping[str, Any]) -> Field:
    kind: Any = item["type"]
    nullable = isinstance(kind, list) and "null" in kind and len(kind) == 2
    if nullable:
        (kind,) = (part for part in kind if part != "null")
    if isinstance(kind, dict) and kind.get("type") in (*_KINDS, *_AS_KIND):
        kind = kind.get("logicalType", kind["type"])
    if isinstance(kind, str):
        kind = _AS_KIND.get(kind, kind)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ContractError(
            f"field '{item['name']}' has type {item['type']}, which no column is made for",
            remedy=_REMEDY,
        )
    return Field(item["name"], kind, nullable)


def _place_columns(
    shape: Shape, partition: tuple[str, int], messages: Sequence[Message]
) -> dict[str, Column]:
    """Where the records stand, a column each."""
    count, place = len(messages), shape.place
    times = map(_time, map(Message.timestamp, messages))
    topic, number = partition
    return {
        place.topic: Texts.repeated(topic, count),
        place.partition: Numbers(np.full(count, number)),
        place.offset: Numbers(_offsets(messages)),
        # Records without a time of their own have a negative one.
        place.timestamp: Numbers(np.fromiter(times, np.int64, count).clip(0)),
    }


_time: Final = itemgetter(1)


def _offsets(messages: Sequence[Message]) -> NDArray[np.int64]:
    first, last = messages[0].offset() or 0, messages[-1].offset() or 0
    if last - first == len(messages) - 1:
        # They only ever grow: none is missing between.
        return np.arange(first, last + 1)
    offsets: Any = map(Message.offset, messages)
    return np.fromiter(offsets, np.int64, len(messages))


def _parts(messages: Sequence[Message], part: Callable[[Message], Any]) -> list[bytes | None]:
    found: list[bytes | None] = list(map(part, messages))
    return found


def _size(texts: Sequence[bytes | None]) -> int:
    try:
        return sum(map(len, texts))  # type: ignore[arg-type]  # a None raises, and is caught
    except TypeError:
        return sum(len(text) for text in texts if text is not None)
