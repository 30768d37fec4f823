"""Java's properties files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["format_properties"]


def format_properties(values: Mapping[str, object]) -> str:
    """A properties file's text, ASCII alone.

    Java reads these files as ISO 8859-1 and takes a backslash for the beginning of an escape: other
    characters stand as UTF-16 units (`java.util.Properties.load`).

    Args:
        values: Keys (plain names) and values, written as `str` gives them.
    """
    return "".join(f"{key}={_escape(str(value))}\n" for key, value in values.items())


def _escape(text: str) -> str:
    # A blank at the beginning would be taken for part of the separator.
    indent = len(text) - len(text.lstrip())
    return "".join(_unit(char, plain=place >= indent) for place, char in enumerate(text))


def _unit(char: str, *, plain: bool) -> str:
    if char == "\\":
        return "\\\\"
    if plain and " " <= char <= "~":
        return char
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
