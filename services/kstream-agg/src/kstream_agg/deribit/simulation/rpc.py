"""JSON-RPC as the exchange speaks it: envelopes, errors and parameters.

Named parameters only, no batches. Over REST every value is a text; `Params` reads both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from kstream_agg.core.errors import KStreamError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kstream_agg.core.clock import Clock

__all__ = ["MAX_REQUEST_BYTES", "Moment", "Params", "RpcError", "error_reply", "reply"]

MAX_REQUEST_BYTES: Final = 32 * 1024
"""A longer frame is answered with -32600, without id."""

_DefaultT = TypeVar("_DefaultT")


class Moment(NamedTuple):
    """When something happens: the wall clock for texts, the other one for timers."""

    wall_ms: int
    monotonic: float

    @classmethod
    def of(cls, clock: Clock) -> Moment:
        """The present of a clock."""
        return cls(clock.now_ms(), clock.monotonic())


class RpcError(KStreamError):
    """A call the exchange refuses.

    Args:
        code: The exchange's number of it.
        message: Its short name there.
        data: Details: an object with `reason` and `param`, or a text.
    """

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.short = message
        self.data = data

    @classmethod
    def wrong_param(cls, param: str, reason: str) -> RpcError:
        """-32602, naming the parameter."""
        return cls(-32602, "Invalid params", {"reason": reason, "param": param})


def reply(request_id: object, result: object, now: Moment) -> bytes:
    """An answer's frame. A request without id is answered without one."""
    return _envelope(request_id, "result", result, now)


def error_reply(request_id: object, error: RpcError, now: Moment) -> bytes:
    """A refusal's frame; the id is left out when it is None."""
    content: dict[str, object] = {"code": error.code, "message": error.short}
    if error.data is not None:
        content["data"] = error.data
    return _envelope(request_id, "error", content, now)


def _envelope(request_id: object, key: str, content: object, now: Moment) -> bytes:
    frame: dict[str, object] = {"jsonrpc": "2.0"}
    if request_id is not None:
        frame["id"] = request_id
    frame[key] = content
    now_us = now.wall_ms * 1000
    # What is simulated says so: this is not the main net.
    frame |= {"usIn": now_us, "usOut": now_us, "usDiff": 0, "testnet": True}
    return msgspec.json.encode(frame)


class Params:
    """Reads the parameters of a call.

    Args:
        values: As they came: JSON values, or texts of a query string.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """A text that must be there.

        Raises:
            RpcError: It is not.
        """
        value = self._values.get(name)
        if not isinstance(value, str) or not value:
            raise RpcError.wrong_param(name, "is required and must be a string")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """One of some texts.

        Raises:
            RpcError: It is another one.
        """
        value = self._values.get(name, default)
        if value not in allowed:
            raise RpcError.wrong_param(name, f"must be one of {', '.join(allowed)}")
        return str(value)

    def integer(
        self, name: str, default: _DefaultT, *, low: int = 0, high: int | None = None
    ) -> int | _DefaultT:
        """A whole number in a range, or `default` when it is absent.

        Raises:
            RpcError: It is no whole number, or out of the range.
        """
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, str) and value.removeprefix("-").isdecimal():
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise RpcError.wrong_param(name, "must be an integer")
        if value < low or (high is not None and value > high):
            raise RpcError.wrong_param(
                name, f"must be at least {low}" + (f" and at most {high}" if high else "")
            )
        return value

    def required_integer(self, name: str) -> int:
        """A whole number that must be there.

        Raises:
            RpcError: It is absent or no whole number.
        """
        value = self.integer(name, None)
        if value is None:
            raise RpcError.wrong_param(name, "is required")
        return value

    def flag(self, name: str) -> bool:
        """A switch that is off by default; `true` counts as text too."""
        return self._values.get(name) in (True, "true")

    def channels(self) -> list[str]:
        """The `channels` of a subscription call, each once.

        Raises:
            RpcError: They are no list of texts.
        """
        value = self._values.get("channels")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RpcError.wrong_param("channels", "is required and must be a list of strings")
        return list(dict.fromkeys(value))
