"""A trade as the exchange writes it: its type, and the careful reading of an unusual one.

`Trade` is what msgspec decodes in one go. It refuses what it does not know, and `read_trade` then
reads that one trade field by field: it keeps unknown keys, accepts numbers that are written
unusually (`1.0e3` for an integer), and refuses, with a reason, what cannot become a record.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.schemas import RAW_TRADE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_TIMESTAMP_MS", "WIRE_FIELDS", "Trade", "read_trade", "trade_identity", "trade_text"]

MAX_TIMESTAMP_MS: Final = 253_402_300_799_999
"""The end of the year 9999, in ms: no sink stores what lies behind it."""

_MIN_LONG: Final = -(2**63)
_MAX_LONG: Final = 2**63 - 1
_Long = Annotated[int, msgspec.Meta(ge=_MIN_LONG, le=_MAX_LONG)]
_Timestamp = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)]
_OURS: Final = frozenset({"received_at", "source", "extra"})


class Trade(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One trade in the exchange's own names; the schema `raw_trade.avsc` documents each.

    `legs` keeps the JSON text it came with; empty and `null` both mean none.
    """

    instrument_name: str
    trade_seq: _Long
    trade_id: str
    timestamp: _Timestamp
    direction: str
    price: float
    amount: float
    tick_direction: _Long
    contracts: float | None = None
    index_price: float | None = None
    mark_price: float | None = None
    iv: float | None = None
    liquidation: str | None = None
    block_trade_id: str | None = None
    block_trade_leg_count: _Long | None = None
    block_rfq_id: _Long | None = None
    combo_id: str | None = None
    combo_trade_id: str | None = None
    legs: msgspec.Raw = msgspec.Raw(b"")
    starbase_match_id: _Long | None = None
    starbase_timestamp: _Long | None = None

    def legs_text(self) -> str | None:
        """The legs of a combo parent as JSON text; None when it has none."""
        text = bytes(self.legs)
        return text.decode() if text and text != b"null" else None


def _wire_fields() -> dict[str, tuple[str, bool]]:
    """Of each field the exchange sends: its Avro type and whether it must be there."""
    fields = {}
    for field in RAW_TRADE["fields"]:
        declared = field["type"]
        optional = isinstance(declared, list)
        kind = declared[1] if optional else declared
        if field["name"] not in _OURS:
            fields[field["name"]] = (kind["type"] if isinstance(kind, dict) else kind, not optional)
    return fields


WIRE_FIELDS: Final = _wire_fields()
_encode_json = msgspec.json.Encoder(decimal_format="number").encode


def read_trade(wire: object) -> tuple[Trade, str | None]:
    """Read one trade field by field.

    Args:
        wire: The decoded JSON of the trade, its fractional numbers as `Decimal` or `float`.

    Returns:
        The trade, and the keys it does not know as JSON text (None when there are none).

    Raises:
        InvalidRecordError: It cannot become a record; the message says which field and why.
    """
    if not isinstance(wire, dict):
        raise _invalid(f"a trade must be an object, not {_kind_of(wire)}")
    _refuse_unstorable(wire)
    values: dict[str, Any] = {}
    for name, (kind, required) in WIRE_FIELDS.items():
        value = wire.get(name)
        if value is not None:
            values[name] = _READERS["json" if name == "legs" else kind](name, value)
        elif required:
            raise _invalid(f"'{name}' is {'null' if name in wire else 'missing'}")
    if not 0 <= values["timestamp"] <= MAX_TIMESTAMP_MS:
        raise _invalid(f"'timestamp' {values['timestamp']} is not between 1970 and 9999")
    unknown = {key: value for key, value in wire.items() if key not in WIRE_FIELDS}
    return Trade(**values), _encode_json(unknown).decode() if unknown else None


def trade_identity(wire: object) -> tuple[str, int] | None:
    """Instrument and `trade_seq` of a refused trade; None when they cannot be read."""
    if not isinstance(wire, dict):
        return None
    try:
        name = _read_text("instrument_name", wire.get("instrument_name"))
        seq = _read_long("trade_seq", wire.get("trade_seq"))
    except InvalidRecordError:
        return None
    return (name, seq) if name and name.isprintable() and _is_unicode(name) and seq > 0 else None


def trade_text(wire: object) -> bytes:
    """JSON text of a refused trade, for its dead letter; shows NaN and broken text as they are."""
    return json.dumps(wire, default=_plain_number).encode("ascii")


def _plain_number(value: object) -> float | str:
    if not isinstance(value, Decimal):
        raise TypeError(f"{type(value).__name__} is not from JSON")
    number = float(value)
    return number if math.isfinite(number) else str(value)


def _invalid(reason: str) -> InvalidRecordError:
    return InvalidRecordError(reason, stage="decode")


def _kind_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    for kind, name in ((str, "a text"), (dict, "an object"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "a number"


def _refuse_unstorable(value: object, path: str = "") -> None:
    """Refuse what no sink can store, wherever in the trade it stands."""
    if isinstance(value, str):
        if "\0" in value:
            raise _invalid(f"'{path}' contains U+0000, which no database stores in a text")
        if not _is_unicode(value):
            raise _invalid(f"'{path}' contains half a surrogate pair, which is no text")
    elif isinstance(value, float | Decimal):
        if not math.isfinite(float(value)):
            raise _invalid(f"'{path}' is {value}, which is no finite number")
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_unstorable(key, f"{path} key" if path else "a key")
            _refuse_unstorable(item, f"{path}.{key}" if path else str(key))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    # The exchange's own documents differ on whether some ids are texts or numbers.
    if isinstance(value, int) and not isinstance(value, bool) and name.endswith("_id"):
        return str(value)
    raise _invalid(f"'{name}' must be a text, not {_kind_of(value)}")


def _read_double(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _invalid(f"'{name}' must be a number, not {_kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        raise _invalid(f"'{name}' is too large a number") from None


def _read_long(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _invalid(f"'{name}' must be a whole number, not {_kind_of(value)}")
    # Compared before it is converted: the integer of 1e300000 would fill the memory.
    if not _MIN_LONG <= value <= _MAX_LONG:
        raise _invalid(f"'{name}' does not fit into 64 bits")
    whole = int(value)
    if whole != value:
        raise _invalid(f"'{name}' must be a whole number, not {value}")
    return whole


def _read_json(name: str, value: object) -> msgspec.Raw:
    del name
    return msgspec.Raw(_encode_json(value))


_READERS: Final[dict[str, Callable[[str, object], object]]] = {
    "string": _read_text,
    "double": _read_double,
    "long": _read_long,
    "json": _read_json,
}
