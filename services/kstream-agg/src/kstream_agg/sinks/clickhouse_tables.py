"""Tables for topics: made where they are missing, written as they are found.

A table of ours has a row's place in Kafka and the record's columns, and is a ReplacingMergeTree
ordered by (topic, partition, offset): what is written twice is one row for `SELECT … FINAL`, and
for every query once the server has merged.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kstream_agg.core.errors import ContractError, InvalidRecordError
from kstream_agg.core.logs import get_logger
from kstream_agg.sinks.clickhouse import identifier, literal
from kstream_agg.sinks.clickhouse_native import encode_block, misfits, parse_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kstream_agg.sinks.clickhouse import ClickHouse, Features
    from kstream_agg.sinks.clickhouse_native import Kind, Target
    from kstream_agg.sinks.rows import Rows

__all__ = ["BARE_PLACE", "KAFKA_PLACE", "Field", "Inserts", "Place", "Prepared", "Shape"]

_log = get_logger(__name__)

# How many inserts a table remembers: an insert is sent again at once, so few would do.
_REMEMBERED_INSERTS: Final = 1_000
_SHOWN_BYTES: Final = 80
_TYPES: Final[dict[Kind, str]] = {
    "string": "String",
    "bytes": "String",
    "long": "Int64",
    "double": "Float64",
    "boolean": "UInt8",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A column of what is written: its name, what it holds, and whether nulls are among it."""

    name: str
    kind: Kind
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What the columns of a record's place in Kafka are called."""

    topic: str
    partition: str
    offset: str
    timestamp: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The columns that name a record."""
        return self.topic, self.partition, self.offset


KAFKA_PLACE: Final = Place("kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp")
"""Beside a record's own columns, which may well have a `timestamp`."""
BARE_PLACE: Final = Place("topic", "partition", "offset", "timestamp")
"""Of records that are not decoded."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of records of one schema.

    Args:
        place: Where they stood in Kafka.
        fields: What they hold.
        optional: Whether columns that a table does not have are left out.
    """

    place: Place
    fields: tuple[Field, ...]
    optional: bool = False

    def types(self, features: Features) -> dict[str, str]:
        """Column to type, as a new table gets them."""
        # An old server has no times of milliseconds: they are numbers there, as in Kafka.
        time_type = "DateTime64(3, 'UTC')" if features.milliseconds else "Int64"
        place = self.place
        found = {place.topic: "String", place.partition: "UInt32", place.offset: "UInt64"}
        found[place.timestamp] = time_type
        for field in self.fields:
            plain = time_type if field.kind == "timestamp-millis" else _TYPES[field.kind]
            found[field.name] = f"Nullable({plain})" if field.nullable else plain
        return found

    def kinds(self) -> dict[str, Kind]:
        """Column to what it holds."""
        place = self.place
        found = {place.topic: "string", place.partition: "long", place.offset: "long"}
        found[place.timestamp] = "timestamp-millis"
        return found | {field.name: field.kind for field in self.fields}


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows made ready: what can be written, and what cannot.

    Args:
        block: The rows that fit, in the Native format; empty when there are none.
        rows: How many.
        refused: Row to why the table cannot hold it.
        columns: Names of the block's columns.
    """

    block: bytes
    rows: int
    refused: dict[int, InvalidRecordError]
    columns: tuple[str, ...] = ()


class Inserts:
    """Writes frames into the table of one topic; one thread may prepare while another writes.

    Args:
        client: The server.
        table: The table's name.
        shape: What the frames hold.
        create: Whether a missing table or column is made.
    """

    def __init__(self, client: ClickHouse, table: str, shape: Shape, *, create: bool) -> None:
        self._client = client
        self._shape = shape
        self._create = create
        self.table = table
        self._name = f"{identifier(client.database)}.{identifier(table)}"
        self._targets: list[Target] | None = None
        self._looking = threading.Lock()

    def forget(self) -> None:
        """Look the table up again: it, or the server, may be another one now."""
        self._targets = None

    def prepare(self, pieces: Sequence[Rows]) -> Prepared:
        """Turn rows into a block of the table's columns.

        Args:
            pieces: Rows of the shape, one piece behind the other; `Prepared` counts through.

        Raises:
            ContractError: The table cannot hold such records.
            UnavailableError: The server does not answer.
            SettingsError: It refuses the user.
        """
        targets = self._columns()
        refused: dict[int, InvalidRecordError] = {}
        fitting: list[Rows] = []
        before = 0
        for piece in pieces:
            found = self._misfits(targets, piece)
            refused |= {before + row: why for row, why in found.items()}
            before += piece.height
            fits = np.ones(piece.height, dtype=np.bool_)
            fits[list(found)] = False
            fitting.append(piece.take(fits) if found else piece)
        rows = sum(piece.height for piece in fitting)
        block = encode_block(targets, fitting) if rows else b""
        return Prepared(block, rows, refused, tuple(target.name for target in targets))

    def _misfits(self, targets: Sequence[Target], piece: Rows) -> dict[int, InvalidRecordError]:
        refused: dict[int, InvalidRecordError] = {}
        for target in targets:
            column = piece[target.name]
            bad = misfits(target, column)
            for row in np.flatnonzero(bad) if bad is not None else ():
                refused.setdefault(int(row), self._misfit(target, column.item(int(row))))
        return refused

    def write(self, prepared: Prepared, token: str) -> None:
        """Insert a block.

        Raises:
            InsertRefusedError: The server refuses it.
            UnavailableError: The server does not answer, or cannot do it now.
            SettingsError: It refuses the user.
        """
        columns = ", ".join(map(identifier, prepared.columns))
        statement = f"INSERT INTO {self._name} ({columns}) FORMAT Native"
        digest = hashlib.sha256(f"{self._name} {token}".encode()).hexdigest()
        self._client.insert(statement, prepared.block, digest)

    def _misfit(self, target: Target, value: object) -> InvalidRecordError:
        if isinstance(value, bytes):
            return InvalidRecordError(
                f"the field '{target.name}' is not UTF-8: {value[:_SHOWN_BYTES]!r}", stage="decode"
            )
        return InvalidRecordError(
            f"column '{target.name}' of table '{self.table}' has type {target.type} and cannot hold"
            f" {'null' if value is None else value}",
            stage="clickhouse",
        )

    # --- the table -------------------------------------------------------------------------

    def _columns(self) -> list[Target]:
        with self._looking:
            # Whoever forgets it does not wait for a look-up to end.
            targets = self._targets
            if targets is None:
                targets = self._targets = self._find_columns()
            return targets

    def _find_columns(self) -> list[Target]:
        found = self._look_up()
        if not found:
            self._make()
            found = self._look_up()
        missing = [name for name in self._shape.kinds() if name not in found]
        if missing and not self._shape.optional:
            self._add(missing)
            found = self._look_up()
        return self._match(found)

    def _match(self, found: Mapping[str, str]) -> list[Target]:
        place = self._shape.place
        lacking = [name for name in (place.partition, place.offset) if name not in found]
        if lacking:
            raise ContractError(
                f"table '{self.table}' has no column '{lacking[0]}'",
                remedy="rename the table, and a new one is made",
            )
        return [
            parse_target(name, found[name], kind)
            for name, kind in self._shape.kinds().items()
            if name in found
        ]

    def _look_up(self) -> dict[str, str]:
        rows = self._client.rows(
            "SELECT name, type FROM system.columns"  # noqa: S608 - literals
            f" WHERE database = {literal(self._client.database)} AND table = {literal(self.table)}"
        )
        return {str(name): str(kind) for name, kind in rows}

    def _make(self) -> None:
        if not self._create:
            raise ContractError(
                f"there is no table '{self.table}', and sink.create says that none is made",
                remedy=self._statement(self._client.features()),
            )
        self._client.execute(self._statement(self._client.features()))
        _log.info("table created", table=self.table)

    def _statement(self, features: Features) -> str:
        types = self._shape.types(features)
        columns = ", ".join(f"{identifier(name)} {kind}" for name, kind in types.items())
        order = ", ".join(map(identifier, self._shape.place.key))
        remembers = f" SETTINGS non_replicated_deduplication_window = {_REMEMBERED_INSERTS}"
        return (
            f"CREATE TABLE IF NOT EXISTS {self._name} ({columns})"
            f" ENGINE = ReplacingMergeTree ORDER BY ({order})"
            + (remembers if features.deduplicates else "")
        )

    def _add(self, missing: Sequence[str]) -> None:
        if not self._create:
            raise ContractError(
                f"table '{self.table}' has no column '{missing[0]}', and sink.create says that "
                "none is added"
            )
        types = self._shape.types(self._client.features())
        for name in missing:
            # IF NOT EXISTS: another member of the group may be as far. Old servers lack it, and
            # tell a column that is there in the look-up that follows.
            self._client.execute(
                f"ALTER TABLE {self._name} ADD COLUMN {identifier(name)} {types[name]}"
            )
        _log.info("columns added", table=self.table, columns=list(missing))
