"""The sink's reference: the same rows upserted by psycopg, 2,000 a transaction.

`python bare_upsert.py PORT PASSWORD_FILE TABLE COUNT CURRENCY` prints the seconds from the first
batch to the last commit. Each batch goes by COPY into a temporary table and from there with one
`INSERT … ON CONFLICT DO UPDATE` into the table: the fastest of the ways psycopg offers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import sql

from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import PostgresSettings
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.sinks.postgres import connect
from kstream_agg.sinks.tables import Table, ensure, raw_table
from workload import encoded, wire_trades

if TYPE_CHECKING:
    import psycopg

_BATCH_ROWS = 2_000


def main(port: str, password_file: str, topic: str, count: str, currency: str) -> None:
    """Make the rows and the table, then upsert."""
    table = raw_table(topic)
    names = [column.name for column in table.columns]
    decoder = RecordDecoder(lambda _id: RAW_TRADE)
    rows = [
        tuple(map(decoder.decode(value).__getitem__, names))
        for _key, value in encoded(wire_trades(int(count), currency), schema_id=1)
    ]
    settings = PostgresSettings(port=int(port), password_file=Path(password_file))
    with connect(settings) as connection:
        ensure(connection, [table])
        target = sql.Identifier(table.name)
        connection.execute(sql.SQL("CREATE TEMP TABLE staged (LIKE {})").format(target))
        upsert = _upsert(table)
        began = time.perf_counter()
        for start in range(0, len(rows), _BATCH_ROWS):
            _write(connection, upsert, rows[start : start + _BATCH_ROWS])
        seconds = time.perf_counter() - began
        found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(target)).fetchone()
    assert found == (len(rows),), "not every row is there"
    print(json.dumps({"records": len(rows), "seconds": seconds}))


def _upsert(table: Table) -> sql.Composed:
    columns = [column.name for column in table.columns if column.name not in table.key]
    return sql.SQL("INSERT INTO {} SELECT * FROM staged ON CONFLICT ({}) DO UPDATE SET {}").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, table.key)),
        sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in columns
        ),
    )


def _write(
    connection: psycopg.Connection[Any], upsert: sql.Composed, rows: list[tuple[Any, ...]]
) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy("COPY staged FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(upsert)
        cursor.execute("TRUNCATE staged")


if __name__ == "__main__":
    main(*sys.argv[1:])
