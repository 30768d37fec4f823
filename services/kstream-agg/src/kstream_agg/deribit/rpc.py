"""JSON-RPC 2.0 as the exchange speaks it: requests, and what stands in a message.

Errors can come without an id, their `data` as an object, as a text or not at all.
"""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["PASSING", "TOO_MANY_REQUESTS", "channel_of", "error_of", "request_text"]

TOO_MANY_REQUESTS: Final = 10028
"""Out of credits; over a websocket the exchange then ends the session."""
PASSING: Final = frozenset(
    {TOO_MANY_REQUESTS, 10040, 10041, 10047, 10066, 11051, 13028, 13503, 13888}
)
"""Errors that pass by themselves: settlement, maintenance, overload, time-outs."""


def request_text(number: int, method: str, params: dict[str, Any]) -> str:
    """A request as it goes over the wire.

    Args:
        number: Its id, which the answer repeats.
        method: E.g. `public/subscribe`.
        params: Its parameters by name; the exchange takes no others.
    """
    request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return json.dumps(request, separators=(",", ":"))


def error_of(message: dict[str, Any]) -> tuple[int | None, str]:
    """Code and text of an error; (None, "") for a result, code 0 where there is no number."""
    error = message.get("error")
    if error is None:
        return None, ""
    if not isinstance(error, dict):
        return 0, str(error)
    code = error.get("code")
    data = error.get("data")
    text = f"{code} {error.get('message', '')}"
    if data:
        text += f", {json.dumps(data, default=str) if isinstance(data, dict) else data}"
    return code if isinstance(code, int) else 0, text


def channel_of(message: dict[str, Any]) -> str:
    """The channel a notification names; empty when it names none."""
    params = message.get("params")
    return str(params.get("channel", "")) if isinstance(params, dict) else ""
