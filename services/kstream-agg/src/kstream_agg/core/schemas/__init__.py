"""The Avro schemas: the single source of the record types.

`RAW_TRADE`, `AVERAGE`, … are the parsed `.avsc` documents beside this module, which are what the
registry is given.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Final

__all__ = ["AVERAGE", "RAW_TRADE", "SOURCE_PROGRESS", "TRADE_GAP", "load_schema"]


def load_schema(name: str) -> dict[str, Any]:
    """Read one of the package's schemas.

    Args:
        name: File name without ending, e.g. `raw_trade`.

    Returns:
        The parsed Avro schema document.
    """
    text = resources.files(__package__).joinpath(f"{name}.avsc").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


RAW_TRADE: Final = load_schema("raw_trade")
AVERAGE: Final = load_schema("average")
SOURCE_PROGRESS: Final = load_schema("source_progress")
TRADE_GAP: Final = load_schema("trade_gap")
