"""Postgres tables generated from the Avro schemas, their single source.

A record schema becomes a table: `timestamp-millis` → `timestamptz(3)`, `double` → `double
precision`, `long` → `bigint`, `string` → `text`; a union with null is a nullable column. The
tables are made before the connectors start, because the JDBC sink itself would create times as
`timestamp` without a zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from kstream_agg.core.errors import ContractError
from kstream_agg.core.names import table_name
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import psycopg

__all__ = ["AVERAGE_KEY", "RAW_KEY", "Column", "Table", "average_table", "ensure", "raw_table"]

RAW_KEY: Final = ("instrument_name", "trade_seq")
AVERAGE_KEY: Final = ("instrument_name", "window_start")

# Avro type → (the type we declare, what information_schema calls it).
_TYPES: Final = {
    "timestamp-millis": ("timestamptz(3)", "timestamp with time zone"),
    "double": ("double precision", "double precision"),
    "long": ("bigint", "bigint"),
    "string": ("text", "text"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, Avro type (`timestamp-millis`, `double`, `long`, `string`), doc."""

    name: str
    avro_type: str
    nullable: bool
    doc: str | None = None

    @property
    def sql_type(self) -> str:
        """The type as it is declared."""
        return _TYPES[self.avro_type][0]

    @property
    def catalog_type(self) -> str:
        """The type as Postgres' catalogue names it."""
        return _TYPES[self.avro_type][1]


@dataclass(frozen=True, slots=True)
class Table:
    """One topic's table."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    doc: str | None = None


def raw_table(topic: str) -> Table:
    """The table of a raw topic, one row a trade."""
    return _table(topic, RAW_TRADE, RAW_KEY)


def average_table(topic: str) -> Table:
    """The table of a topic of averages, one row a window."""
    return _table(topic, AVERAGE, AVERAGE_KEY)


def _table(topic: str, schema: Mapping[str, Any], key: tuple[str, ...]) -> Table:
    columns = tuple(_column(field) for field in schema["fields"])
    return Table(table_name(topic), columns, key, schema.get("doc"))


def _column(field: Mapping[str, Any]) -> Column:
    kind = field["type"]
    nullable = isinstance(kind, list)
    if nullable:
        (kind,) = (part for part in kind if part != "null")
    name = kind["logicalType"] if isinstance(kind, dict) else kind
    if name not in _TYPES:
        raise ContractError(f"field '{field['name']}' has type {name}, which no column can hold")
    return Column(field["name"], name, nullable, field.get("doc"))


def ensure(connection: psycopg.Connection[Any], tables: Iterable[Table]) -> list[str]:
    """Create the tables that are missing and the nullable columns missing in existing ones.

    Args:
        connection: Where; everything is done in one transaction.
        tables: The tables.

    Returns:
        What was changed, one phrase each; empty when all stood already.

    Raises:
        ContractError: A table exists whose key or column types are not the schema's.
    """
    changes: list[str] = []
    with connection.transaction():
        # Two services that start together must not race on CREATE TABLE IF NOT EXISTS.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('kstream-agg tables'))")
        for table in tables:
            found = _existing_columns(connection, table)
            if not found:
                connection.execute(_create(table))
                changes.append(f"created table {table.name}")
            else:
                changes += _complete(connection, table, found)
            _comment(connection, table)
    return changes


def _existing_columns(connection: psycopg.Connection[Any], table: Table) -> dict[str, str]:
    rows = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = %s",
        (table.name,),
    )
    return {str(name): str(data_type) for name, data_type in rows}


def _create(table: Table) -> sql.Composed:
    lines = [_definition(column) for column in table.columns]
    key = sql.SQL(", ").join(map(sql.Identifier, table.key))
    lines.append(sql.SQL("PRIMARY KEY ({})").format(key))
    return sql.SQL("CREATE TABLE {} ({})").format(
        sql.Identifier(table.name), sql.SQL(", ").join(lines)
    )


def _definition(column: Column) -> sql.Composed:
    null = sql.SQL("") if column.nullable else sql.SQL(" NOT NULL")
    # The type comes from the table above, never from outside.
    return sql.SQL("{} {}{}").format(sql.Identifier(column.name), sql.SQL(column.sql_type), null)


def _complete(
    connection: psycopg.Connection[Any], table: Table, found: Mapping[str, str]
) -> list[str]:
    wrong = [
        f"{column.name} is {found[column.name]}, not {column.catalog_type}"
        for column in table.columns
        if column.name in found and found[column.name] != column.catalog_type
    ]
    missing = [column for column in table.columns if column.name not in found]
    wrong += [f"{column.name} is missing" for column in missing if not column.nullable]
    key = _existing_key(connection, table)
    if set(key) != set(table.key):
        wrong.append(f"its primary key is ({', '.join(key)}), not ({', '.join(table.key)})")
    if wrong:
        raise ContractError(
            f"table {table.name} exists with other columns than its schema: {'; '.join(wrong)}",
            remedy="rename or drop the table; the sink writes it anew from the topic "
            "once the connector's offsets are reset",
        )
    for column in missing:
        connection.execute(
            sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {}").format(
                sql.Identifier(table.name), _definition(column)
            )
        )
    return [f"added column {table.name}.{column.name}" for column in missing]


def _existing_key(connection: psycopg.Connection[Any], table: Table) -> list[str]:
    rows = connection.execute(
        "SELECT a.attname FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indisprimary AND i.indrelid = to_regclass(quote_ident(%s))",
        (table.name,),
    )
    return [str(name) for (name,) in rows]


def _comment(connection: psycopg.Connection[Any], table: Table) -> None:
    identifier = sql.Identifier(table.name)
    if table.doc:
        connection.execute(
            sql.SQL("COMMENT ON TABLE {} IS {}").format(identifier, sql.Literal(table.doc))
        )
    for column in table.columns:
        if column.doc:
            target = sql.SQL("COMMENT ON COLUMN {}.{} IS {}")
            name = sql.Identifier(column.name)
            connection.execute(target.format(identifier, name, sql.Literal(column.doc)))
