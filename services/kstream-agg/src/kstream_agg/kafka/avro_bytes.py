"""Avro's binary encoding of single values, for encoders that are written by hand.

A record-by-record `fastavro` call costs several times what joining these costs.
https://avro.apache.org/docs/1.12.0/specification/#binary-encoding
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "NULL",
    "VALUE",
    "long_bytes",
    "optional_double",
    "optional_long",
    "optional_text",
    "small_long",
    "text_bytes",
]

# Positions of the branches of a union ["null", X]: zigzag of 0 and of 1.
NULL: Final = b"\x00"
"""The union ["null", X] without a value."""
VALUE: Final = b"\x02"
"""What stands before the value of a union ["null", X]."""
_SMALL: Final = tuple(bytes((2 * number,)) for number in range(64))

_double = struct.Struct("<d").pack


def long_bytes(number: int) -> bytes:
    """A long or int: variable-length zig-zag."""
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def small_long(number: int) -> bytes:
    """A long that mostly is between 0 and 63: one byte then."""
    return _SMALL[number] if 0 <= number < 64 else long_bytes(number)


def text_bytes(text: str) -> bytes:
    """A string: its length and UTF-8."""
    encoded = text.encode()
    return small_long(len(encoded)) + encoded


def optional_double(number: float | None) -> bytes:
    """A double or null."""
    return NULL if number is None else VALUE + _double(number)


def optional_long(number: int | None) -> bytes:
    """A long or null."""
    return NULL if number is None else VALUE + long_bytes(number)


def optional_text(text: str | None) -> bytes:
    """A string or null."""
    return NULL if text is None else VALUE + text_bytes(text)
