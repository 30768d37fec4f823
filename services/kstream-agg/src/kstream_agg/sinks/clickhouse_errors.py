"""ClickHouse's errors as ours: by their numbers, never by their text.

The numbers stand in the server's `src/Common/ErrorCodes.cpp` and do not change from version to
version. A server that answers with one has done nothing of a one-block insert.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import KStreamError, SettingsError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["InsertRefusedError", "Refusal", "server_error"]

_CODE_HEADER: Final = "x-clickhouse-exception-code"
_CODE_IN_TEXT: Final = re.compile(rb"^Code: (\d+)")
_SHOWN_BYTES: Final = 600
_TOO_LARGE: Final = 413

_ACCESS_CODES: Final = frozenset(
    {
        192,  # UNKNOWN_USER
        193,  # WRONG_PASSWORD
        194,  # REQUIRED_PASSWORD
        497,  # ACCESS_DENIED
        516,  # AUTHENTICATION_FAILED
    }
)
_MISSING_CODES: Final = frozenset(
    {
        8,  # THERE_IS_NO_COLUMN
        10,  # NOT_FOUND_COLUMN_IN_BLOCK
        16,  # NO_SUCH_COLUMN_IN_TABLE
        60,  # UNKNOWN_TABLE
        81,  # UNKNOWN_DATABASE
        115,  # UNKNOWN_SETTING: another server than the one that was asked what it knows
        218,  # TABLE_IS_DROPPED
    }
)
_SIZE_CODES: Final = frozenset(
    {
        241,  # MEMORY_LIMIT_EXCEEDED
        252,  # TOO_MANY_PARTS: of the table, for a while, or of one block, for good
        158,  # TOO_MANY_ROWS
        307,  # TOO_MANY_BYTES
    }
)
_DATA_CODES: Final = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        38,  # CANNOT_PARSE_DATE
        41,  # CANNOT_PARSE_DATETIME
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        72,  # CANNOT_PARSE_NUMBER
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        153,  # ILLEGAL_DIVISION
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        376,  # CANNOT_PARSE_UUID
        395,  # FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
        407,  # DECIMAL_OVERFLOW
        441,  # CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
        469,  # VIOLATED_CONSTRAINT
        675,  # CANNOT_PARSE_IPV4
        676,  # CANNOT_PARSE_IPV6
        691,  # UNKNOWN_ELEMENT_OF_ENUM
    }
)


@enum.unique
class Refusal(enum.Enum):
    """Why an insert was refused."""

    DATA = "data"
    """A value in it: some rows are bad, the others are not."""
    SIZE = "size"
    """It is too much at once, or just now."""
    MISSING = "missing"
    """The table, or one of its columns, is not there (any more)."""


class InsertRefusedError(KStreamError):
    """The server has refused an insert, and done nothing of it.

    Args:
        message: The server's words.
        code: Its number; 0 where it gave none.
        refusal: What that means.
    """

    def __init__(self, message: str, *, code: int, refusal: Refusal) -> None:
        super().__init__(message)
        self.code = code
        self.refusal = refusal


def server_error(
    place: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    data_codes: frozenset[int] = frozenset(),
) -> KStreamError:
    """The error that an answer stands for.

    Args:
        place: The server, for the message.
        status: HTTP status.
        headers: The answer's.
        body: The answer's.
        data_codes: Further numbers that mean bad data.

    Returns:
        `SettingsError` for user and rights, `InsertRefusedError` for what an insert can be refused
        for; `UnavailableError` for everything else: of what is not known for certain to be the
        data's fault, trying again is the only thing that loses nothing.
    """
    code = _code_of(headers, body)
    text = body[:_SHOWN_BYTES].decode("utf-8", "replace").strip() or f"HTTP status {status}"
    if code in _ACCESS_CODES:
        return SettingsError(
            f"{place} refuses the user: {text}",
            remedy="check KSTREAM__CLICKHOUSE__USER, …__PASSWORD and the user's grants",
        )
    refusal = _refusal(code, status, data_codes)
    if refusal is not None:
        return InsertRefusedError(text, code=code, refusal=refusal)
    return UnavailableError(f"{place} cannot do it now: {text}")


def _refusal(code: int, status: int, data_codes: frozenset[int]) -> Refusal | None:
    if code in _DATA_CODES or code in data_codes:
        return Refusal.DATA
    if code in _SIZE_CODES or (code == 0 and status == _TOO_LARGE):
        return Refusal.SIZE
    if code in _MISSING_CODES:
        return Refusal.MISSING
    return None


def _code_of(headers: Mapping[str, str], body: bytes) -> int:
    """The server's number for the error; servers before 19 tell it in the text alone."""
    named = headers.get(_CODE_HEADER, "")
    if named.isdecimal():
        return int(named)
    match = _CODE_IN_TEXT.match(body)
    return int(match[1]) if match else 0
