"""Compares a topic's records with their rows in Postgres, in bounded memory.

Records are looked up by their keys, some thousands at a time. What stands under a key last in
the topic must be what stands in the table: a difference is kept until a later record of the key
settles it. Rows that no record accounts for are found by reading all keys of the table. What the
sinks have written since the ends were fixed is told apart by reading on from there.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from kstream_agg.sinks.postgres import explain
from kstream_agg.verify.seqs import SeqSet
from kstream_agg.verify.windows import epoch_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kstream_agg.core.settings import PostgresSettings
    from kstream_agg.sinks.tables import Table
    from kstream_agg.verify.report import Check

__all__ = ["RowKey", "TableComparison", "row_key"]

RowKey = tuple[str, int]
"""instrument_name and trade_seq, or instrument_name and window_start in ms."""

_CHUNK: Final = 4000
_ONLY_IN_POSTGRES: Final = "in Postgres, not in the topic"


class TableComparison:
    """Compares records, given one by one, with one table.

    Args:
        connection: The database.
        settings: Its settings, for errors.
        table: The table.
        check: Where the result goes.
        refused: By key, the records that the table has refused and that were set aside.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        settings: PostgresSettings,
        table: Table,
        check: Check,
        *,
        refused: Mapping[RowKey, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._table = table
        self._check = check
        self._refused = refused
        self._names = [column.name for column in table.columns]
        self._lookup = _lookup(table)
        self._waiting: dict[RowKey, Mapping[str, Any]] = {}
        self._seen: dict[str, SeqSet] = defaultdict(SeqSet)
        self._wrong: dict[RowKey, str] = {}
        self.repeats = 0

    def key_of(self, record: Mapping[str, Any]) -> RowKey:
        """The record's key in the table."""
        return row_key(self._table, record)

    def add(self, record: Mapping[str, Any]) -> None:
        """The next record; of one key, in topic order."""
        key = self.key_of(record)
        if self._seen[key[0]].add(key[1]):
            self._check.compared += 1
        else:
            self.repeats += 1
        self._waiting[key] = record
        if len(self._waiting) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Look up the records that wait."""
        if not self._waiting:
            return
        keys = [tuple(r[name] for name in self._table.key) for r in self._waiting.values()]
        columns = [list(column) for column in zip(*keys, strict=True)]
        found: dict[RowKey, tuple[Any, ...]] = {}
        try:
            with self._connection.cursor(binary=True) as cursor:
                for row in cursor.execute(self._lookup, columns):
                    found[_key(row[: len(self._table.key)])] = row[len(self._table.key) :]
        except psycopg.Error as error:
            raise explain(error, self._settings) from error
        for key, record in self._waiting.items():
            self._judge(key, record, found.get(key))
        self._waiting.clear()

    def _judge(self, key: RowKey, record: Mapping[str, Any], row: tuple[Any, ...] | None) -> None:
        self._wrong.pop(key, None)
        wrong = self._difference(record, row)
        if wrong is None:
            return
        if record in self._refused.get(key, ()):
            self._check.note("rows that Postgres refused, in the sink's dead-letter topic")
        else:
            self._wrong[key] = wrong

    def _difference(self, record: Mapping[str, Any], row: tuple[Any, ...] | None) -> str | None:
        if row is None:
            return "in the topic, not in Postgres"
        wrong = [
            f"{name} is {value!r} in Postgres, {record[name]!r} in the topic"
            for name, value in zip(self._names, row, strict=True)
            if value != record[name]
        ]
        return "; ".join(wrong) or None

    def find_unaccounted(self, *, is_cut: bool) -> None:
        """Read all keys of the table for rows that no record accounts for.

        Args:
            is_cut: Retention has deleted the topic's beginning: rows older than what is left
                of their instrument are counted, not judged.
        """
        self.flush()
        for key in self._keys():
            seen = self._seen.get(key[0])
            if seen is not None and key[1] in seen:
                continue
            if is_cut and (seen is None or key[1] < seen.lowest):
                self._check.note("rows older than what retention has left of the topic")
            else:
                self._wrong[key] = _ONLY_IN_POSTGRES

    def _keys(self) -> Iterator[RowKey]:
        names = sql.SQL(", ").join(map(sql.Identifier, self._table.key))
        query = sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(self._table.name))
        try:
            with (
                self._connection.transaction(),
                self._connection.cursor("kstream_agg_verify") as cursor,
            ):
                cursor.itersize = _CHUNK
                for row in cursor.execute(query):
                    yield _key(row)
        except psycopg.Error as error:
            raise explain(error, self._settings) from error

    @property
    def is_unsettled(self) -> bool:
        """Whether differences are left that newer records could explain."""
        self.flush()
        return bool(self._wrong)

    def excuse(self, key: RowKey) -> None:
        """A newer record of this key stands behind the fixed end: the row may be newer too."""
        if self._wrong.pop(key, None) is not None:
            self._check.note("rows written since the ends were fixed")

    def finish(self) -> None:
        """Hand what is left to the check."""
        self.flush()
        for (instrument, second), wrong in self._wrong.items():
            self._check.differs(f"{instrument} {self._table.key[1]} {second}: {wrong}")


def row_key(table: Table, record: Mapping[str, Any]) -> RowKey:
    """A record's key in its table."""
    return _key(record[name] for name in table.key)


def _key(values: Any) -> RowKey:  # noqa: ANN401 - an iterable of two values of a row or record
    instrument, second = values
    return instrument, epoch_ms(second) if isinstance(second, datetime) else second


def _lookup(table: Table) -> sql.Composed:
    types = {column.name: column.sql_type for column in table.columns}
    arrays = sql.SQL(", ").join(
        sql.SQL("%s::{}[]").format(sql.SQL(types[name])) for name in table.key
    )
    keys = sql.SQL(", ").join(map(sql.Identifier, table.key))
    wanted = sql.SQL(", ").join(
        [
            *(sql.Identifier("t", name) for name in table.key),
            *(sql.Identifier("t", column.name) for column in table.columns),
        ]
    )
    return sql.SQL("SELECT {} FROM {} t JOIN unnest({}) AS k ({}) USING ({})").format(
        wanted, sql.Identifier(table.name), arrays, keys, keys
    )
