"""Asking the database whether it would take a row: written, and rolled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from kstream_agg.sinks.causes import Cause, cause_of_state
from kstream_agg.sinks.postgres import connect, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kstream_agg.core.settings import PostgresSettings
    from kstream_agg.sinks.tables import Table

__all__ = ["Refusal", "RowProbe"]

_LIMITS: Final = "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '30s'"
# U+0000 in a text: psycopg refuses it before the server, which would say this, can.
_UNENCODABLE: Final = ("CharacterNotInRepertoire", "22021")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the database does not take a row.

    Attributes:
        error_class: The error's name, e.g. `CheckViolation`.
        sqlstate: Its SQLSTATE.
        message: The server's sentence.
    """

    error_class: str
    sqlstate: str
    message: str


class RowProbe:
    """Asks one database.

    Args:
        settings: How to reach it.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings

    def refusal(self, table: Table, record: Mapping[str, Any]) -> Refusal | None:
        """Why the database would not take this record; None when it would.

        Args:
            table: The record's table.
            record: The decoded record.

        Raises:
            UnavailableError: It cannot answer now.
            ContractError: It refuses for another reason than the record's values.
        """
        names = [column.name for column in table.columns if column.name in record]
        with connect(self._settings) as connection:
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute(_LIMITS)
                    # A constraint that is looked at on commit would never be.
                    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                    connection.execute(_upsert(table, names), [record[name] for name in names])
            except psycopg.Error as error:
                found = _refusal(error)
                if found is None:
                    raise explain(error, self._settings) from error
                return found
        return None


def _refusal(error: psycopg.Error) -> Refusal | None:
    if error.sqlstate is None:
        if isinstance(error, psycopg.DataError):
            return Refusal(*_UNENCODABLE, str(error).strip())
        return None
    if cause_of_state(error.sqlstate) is not Cause.DATA:
        return None
    message = error.diag.message_primary or str(error).strip()
    return Refusal(type(error).__name__, error.sqlstate, message)


def _upsert(table: Table, names: list[str]) -> sql.Composed:
    """What the sink writes (`insert.mode=upsert`)."""
    others = [sql.Identifier(name) for name in names if name not in table.key]
    update: sql.Composable = sql.SQL("NOTHING")
    if others:
        pairs = [sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in others]
        update = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(pairs))
    return sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO {}").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(sql.Placeholder() for _ in names),
        sql.SQL(", ").join(map(sql.Identifier, table.key)),
        update,
    )
