"""Connections to Postgres, and its errors as ours (by SQLSTATE, never by their text)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from kstream_agg.core.errors import ContractError, KStreamError, SettingsError, UnavailableError
from kstream_agg.core.settings import read_secret

if TYPE_CHECKING:
    from kstream_agg.core.settings import PostgresSettings

__all__ = ["connect", "explain", "jdbc_url"]

_CONNECT_TIMEOUT_S = 5
# SQLSTATE classes and codes: Postgres' documentation, appendix A.
_NOT_AUTHORISED = "28"
_NO_DATABASE = "3D000"
_NOT_READY_YET = ("57P03", "53300")


def connect(settings: PostgresSettings, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """Open a connection whose session runs in UTC.

    Raises:
        UnavailableError: Nothing answers, or the server is starting or full.
        SettingsError: User, password or database are wrong.
    """
    try:
        return psycopg.connect(
            host=settings.host,
            port=settings.port,
            dbname=settings.database,
            user=settings.user,
            password=read_secret(settings.password, settings.password_file),
            sslmode=settings.sslmode,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="kstream-agg",
            options="-c timezone=UTC",
            autocommit=autocommit,
        )
    except psycopg.Error as error:
        raise explain(error, settings) from error


def explain(error: psycopg.Error, settings: PostgresSettings) -> KStreamError:
    """Postgres' error as one of ours, with its SQLSTATE where the server gave one."""
    place = f"Postgres at {settings.host}:{settings.port}"
    state = error.sqlstate
    if state is None:
        # psycopg gives no SQLSTATE for failures while connecting: libpq keeps only the text.
        return _connection_error(error, settings, place)
    if state.startswith(_NOT_AUTHORISED):
        return SettingsError(
            f"{place} refuses user '{settings.user}' (SQLSTATE {state})",
            remedy="check KSTREAM__POSTGRES__USER and KSTREAM__POSTGRES__PASSWORD",
        )
    if state == _NO_DATABASE:
        return SettingsError(f"{place} has no database '{settings.database}' (SQLSTATE {state})")
    if state in _NOT_READY_YET or state.startswith(("08", "57P")):
        return UnavailableError(f"{place} cannot answer now (SQLSTATE {state})")
    message = error.diag.message_primary or str(error).strip()
    return ContractError(f"Postgres: {message} (SQLSTATE {state})", remedy=error.diag.message_hint)


def _connection_error(error: psycopg.Error, settings: PostgresSettings, place: str) -> KStreamError:
    text = _last_sentence(str(error))
    if isinstance(error, psycopg.OperationalError) and error.pgconn is not None:
        needs_password = error.pgconn.needs_password or error.pgconn.used_password
        if needs_password:
            return SettingsError(
                f"{place} refuses user '{settings.user}' or database '{settings.database}': {text}",
                remedy="check KSTREAM__POSTGRES__USER, …__PASSWORD and …__DATABASE",
            )
    return UnavailableError(
        f"{place} does not answer: {text}",
        remedy="start the stack with `make run` or `make demo`, or set KSTREAM__POSTGRES__HOST "
        "and KSTREAM__POSTGRES__PORT",
    )


def _last_sentence(text: str) -> str:
    """The text of libpq without its list of addresses and its questions back."""
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return first.rsplit("failed: ", 1)[-1].removeprefix("FATAL: ").strip()


def jdbc_url(settings: PostgresSettings) -> str:
    """The database's address as the JDBC driver writes it.

    `reWriteBatchedInserts` joins a batch's rows into statements of many rows: without it the
    sink is several times slower.
    """
    return (
        f"jdbc:postgresql://{settings.host}:{settings.port}/{settings.database}"
        f"?reWriteBatchedInserts=true&sslmode={settings.sslmode}"
    )
