"""Why a sink's task has failed: the data, or something that passes.

Postgres says so in its SQLSTATE. Connect's trace carries none, but the sink's Hibernate turns it
into exceptions of its own, whose classes stand in the trace: `ConstraintViolationException` is
class 23, `DataException` class 22, `JDBCConnectionException` class 08 and so on. Messages are never
looked at: they are for people and speak their language.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import enum
import re
from typing import Final

__all__ = ["Cause", "cause_of_state", "cause_of_trace"]

_THROWN: Final = re.compile(r"^(?:Caused by: )?((?:[a-z_][\w$]*\.)+[A-Z][\w$]*)", re.MULTILINE)
_DATA_CLASSES: Final = ("22", "23")
# Connection, rollback, resources, not in the right state (locks), operator, system.
_PASSING_CLASSES: Final = ("08", "40", "53", "55", "57", "58")
_HIBERNATE: Final = "org.hibernate.exception."
_DATA_ERRORS: Final = frozenset(
    {
        f"{_HIBERNATE}ConstraintViolationException",
        f"{_HIBERNATE}DataException",
        "java.sql.SQLDataException",
        "java.sql.SQLIntegrityConstraintViolationException",
    }
)
_PASSING_ERRORS: Final = frozenset(
    {
        f"{_HIBERNATE}JDBCConnectionException",
        f"{_HIBERNATE}LockAcquisitionException",
        f"{_HIBERNATE}LockTimeoutException",
        f"{_HIBERNATE}QueryTimeoutException",
        "java.net.ConnectException",
        "java.net.SocketException",
        "java.net.SocketTimeoutException",
        "java.net.UnknownHostException",
        "java.io.EOFException",
    }
)


@enum.unique
class Cause(enum.Enum):
    """What a failure comes from."""

    DATA = "data"
    PASSING = "passing"
    UNKNOWN = "unknown"


def cause_of_state(sqlstate: str) -> Cause:
    """What an SQLSTATE says."""
    if sqlstate.startswith(_DATA_CLASSES):
        return Cause.DATA
    return Cause.PASSING if sqlstate.startswith(_PASSING_CLASSES) else Cause.UNKNOWN


def cause_of_trace(trace: str | None) -> Cause:
    """What a Java stack trace says; the data where any exception in it does."""
    thrown = set(_THROWN.findall(trace or ""))
    if thrown & _DATA_ERRORS:
        return Cause.DATA
    return Cause.PASSING if thrown & _PASSING_ERRORS else Cause.UNKNOWN
