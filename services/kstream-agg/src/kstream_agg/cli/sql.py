"""`kstream-agg sql`: one query, or psql, on the stack's Postgres."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psycopg
from rich.table import Table
from rich.text import Text

from kstream_agg.cli.tools import open_tools, output
from kstream_agg.core.errors import PrerequisiteError
from kstream_agg.core.settings import read_secret
from kstream_agg.sinks.postgres import connect, explain
from kstream_agg.stack.programs import find_postgres

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.core.settings import PostgresSettings

__all__ = ["sql"]


@click.command()
@click.argument("query", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
def sql(query: str | None, *, as_csv: bool) -> None:
    """Run QUERY on the stack's Postgres and print its result; without QUERY, open psql.

    Times are shown in UTC. Example: kstream-agg sql "SELECT count(*) FROM trades_option_btc"
    """
    settings, _ = open_tools("sql")
    if query is None:
        _become_psql(settings.postgres)
        return
    with connect(settings.postgres) as connection:
        try:
            cursor = connection.execute(query.encode())
            rows = cursor.fetchall() if cursor.description else None
        except psycopg.Error as error:
            raise explain(error, settings.postgres) from error
        if rows is None:
            click.echo(cursor.statusmessage or "done")
            return
        names = [column.name for column in cursor.description or ()]
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([["" if v is None else _text(v) for v in row] for row in rows])
    else:
        _print(names, rows)


def _print(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table()
    for number, name in enumerate(names):
        column = [row[number] for row in rows]
        numeric = any(isinstance(value, (int, float)) for value in column)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Cells are texts, never rich's markup: a value may hold brackets.
        table.add_row(*(Text(_text(value)) for value in row))
    console = output()
    console.print(table)
    console.print(f"{len(rows)} row{'' if len(rows) == 1 else 's'}", highlight=False)


def _text(value: object) -> str:
    if value is None:
        return "∅"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds")
    return str(value)


def _become_psql(postgres: PostgresSettings) -> None:
    program = _find_psql()
    environment = os.environ | {
        "PGHOST": postgres.host,
        "PGPORT": str(postgres.port),
        "PGDATABASE": postgres.database,
        "PGUSER": postgres.user,
        "PGSSLMODE": postgres.sslmode,
        "PGTZ": "UTC",
    }
    password = read_secret(postgres.password, postgres.password_file)
    if password is not None:
        environment["PGPASSWORD"] = password
    connect(postgres).close()  # psql's own message would not name our settings
    os.execve(program, [str(program)], environment)  # noqa: S606 - psql takes over the terminal


def _find_psql() -> Path:
    with contextlib.suppress(PrerequisiteError):  # Postgres' wheel is an extra
        return find_postgres("psql")
    found = shutil.which("psql")
    if found is None:
        raise PrerequisiteError(
            "psql is not installed",
            remedy='run `make setup`, or give the query: kstream-agg sql "SELECT …"',
        )
    return Path(found)
