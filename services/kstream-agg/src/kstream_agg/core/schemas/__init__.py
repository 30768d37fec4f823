"""The Avro schemas: the single source of the record types.

`RAW_TRADE` and `AVERAGE` are the parsed `.avsc` documents; `raw_trade.avsc` and `average.avsc`
beside this module are what the registry is given.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Final

__all__ = ["AVERAGE", "RAW_TRADE", "load_schema"]


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
