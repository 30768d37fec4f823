"""What is in a websocket frame: a batch of trades, or a message of the protocol.

JSON-RPC 2.0 over text frames (https://docs.deribit.com, "JSON-RPC"). Almost every frame is a
notification of trades, decoded in one call. Whatever that call refuses is read again piece by
piece, so that one bad trade costs nothing but itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import msgspec

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.deribit.trades import Trade, read_trade, trade_identity, trade_text

__all__ = ["RejectedTrade", "TradeBatch", "decode_frame", "read_trades"]


@dataclass(frozen=True, slots=True)
class RejectedTrade:
    """A trade that cannot become a record."""

    wire: bytes
    """Its JSON text."""
    error: InvalidRecordError
    identity: tuple[str, int] | None = None
    """Its instrument and `trade_seq`, where they can be read."""


@dataclass(slots=True)
class TradeBatch:
    """The trades of one notification, in the exchange's order."""

    channel: str
    trades: list[Trade]
    extras: dict[int, str] = field(default_factory=dict)
    """Position in `trades` → the keys of that trade that `Trade` does not know, as JSON text."""
    rejected: list[RejectedTrade] = field(default_factory=list)


class _Params(msgspec.Struct):
    channel: str
    data: list[Trade]


class _Notification(msgspec.Struct):
    method: str
    params: _Params


_decode_notification = msgspec.json.Decoder(_Notification).decode
_decode_any = msgspec.json.Decoder(float_hook=Decimal).decode
# U+0000 inside a JSON text is always written as this escape, or the frame is not JSON.
_ESCAPED_NUL: Final = b"\\u0000"
_TRADES: Final = "trades."


def decode_frame(frame: bytes) -> TradeBatch | dict[str, Any]:
    """Decode one frame.

    Args:
        frame: Its bytes.

    Returns:
        A batch for a notification of trades, else the message as it stands.

    Raises:
        InvalidRecordError: It is not a JSON object, or a notification of trades without a list.
    """
    if _ESCAPED_NUL not in frame:
        try:
            message = _decode_notification(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            if message.method == "subscription" and message.params.channel.startswith(_TRADES):
                return TradeBatch(message.params.channel, message.params.data)
    try:
        return _decode_slowly(frame)
    except RecursionError as error:
        raise InvalidRecordError("the frame is nested too deeply", stage="decode") from error


def read_trades(content: bytes) -> tuple[dict[str, Any], TradeBatch | None]:
    """Read an answer of the history calls trade by trade.

    Args:
        content: The body of the reply.

    Returns:
        The message, and its trades (without a channel); None when it has none.

    Raises:
        InvalidRecordError: It is not a JSON object.
    """
    try:
        message = _decode_leniently(content)
    except RecursionError as error:
        raise InvalidRecordError("the answer is nested too deeply", stage="decode") from error
    if not isinstance(message, dict):
        raise InvalidRecordError("the answer is JSON, but not an object", stage="decode")
    result = message.get("result")
    trades = result.get("trades") if isinstance(result, dict) else None
    return message, _read_batch("", trades) if isinstance(trades, list) else None


def _decode_slowly(frame: bytes) -> TradeBatch | dict[str, Any]:
    message = _decode_leniently(frame)
    if not isinstance(message, dict):
        raise InvalidRecordError("the frame is JSON, but not an object", stage="decode")
    params = message.get("params")
    if message.get("method") != "subscription" or not isinstance(params, dict):
        return message
    channel = params.get("channel")
    if not isinstance(channel, str) or not channel.startswith(_TRADES):
        return message
    data = params.get("data")
    if not isinstance(data, list):
        raise InvalidRecordError(
            f"the notification of {channel} has no list 'data'", stage="decode"
        )
    return _read_batch(channel, data)


def _decode_leniently(frame: bytes) -> object:
    """Any JSON, and the near-JSON that some encoders write: NaN, Infinity, half surrogates."""
    try:
        return _decode_any(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        found: object = json.loads(frame, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError(f"the frame is not JSON: {error}", stage="decode") from error
    return found


def _read_batch(channel: str, data: list[object]) -> TradeBatch:
    batch = TradeBatch(channel, [])
    for wire in data:
        try:
            trade, extra = read_trade(wire)
        except InvalidRecordError as error:
            batch.rejected.append(RejectedTrade(trade_text(wire), error, trade_identity(wire)))
            continue
        if extra is not None:
            batch.extras[len(batch.trades)] = extra
        batch.trades.append(trade)
    return batch
