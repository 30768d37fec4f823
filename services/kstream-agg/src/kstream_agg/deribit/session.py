"""One session with the exchange as a pure protocol machine: frames and time in, events out.

The course of a session:

    1. `public/hello`: who we are; the answer tells a simulator from the exchange.
    2. `public/set_heartbeat`: from now on silence means a dead connection.
    3. `public/subscribe` in calls that respect the exchange's limits, at most three a second.
    4. The acknowledged channels are compared, as sets, with those asked for: the exchange leaves
       unknown ones out without an error. Missing ones are asked for again.
    5. Trades until the connection ends. Every `test_request` is answered by `public/test`.

Notifications are routed by their method: trades can arrive before the subscription's answer.
Protocol facts: https://docs.deribit.com (public/hello, public/set_heartbeat, public/subscribe,
error codes).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Literal

from kstream_agg.core.errors import ChannelRefusedError, InvalidRecordError
from kstream_agg.deribit.events import (
    BadFrame,
    ChannelsMissing,
    Event,
    Ignored,
    Lost,
    Notice,
    Refused,
    Send,
    Subscribed,
    Trades,
)
from kstream_agg.deribit.frames import TradeBatch, decode_frame
from kstream_agg.deribit.rpc import channel_of, error_of, request_text
from kstream_agg.deribit.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Session", "SessionTimes"]

_TOO_MANY_REQUESTS: Final = 10028
_RAW_NEEDS_LOGIN: Final = 13778
_TOO_LARGE: Final = -32600
# Errors that pass: 10028 too_many_requests is handled apart, as the exchange then hangs up.
_PASSING: Final = frozenset({10040, 10041, 10047, 10066, 11051, 13028, 13503, 13888})
_WAIT_AFTER_TOO_MANY_S: Final = 10.0  # the pool of credits is full again after 3 s
_MAX_RETRY_S: Final = 60.0

_Kind = Literal["hello", "heartbeat", "subscribe"]


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """How long a session waits, in seconds.

    Args:
        heartbeat_interval: What is asked of the exchange, at least 10.
        call_timeout: For the answer to a call.
        retry: Before the first repetition of a subscription; doubles with each.
    """

    heartbeat_interval: int = 10
    call_timeout: float = 30.0
    retry: float = 1.0

    @property
    def silence(self) -> float:
        """Three missed test requests: they come at intervals measured up to 7% longer."""
        return 3.5 * self.heartbeat_interval


@dataclass(frozen=True, slots=True)
class _Call:
    kind: _Kind
    sent_at: float
    channels: tuple[str, ...] = ()


class Session:
    """The protocol of one connection.

    Args:
        channels: What to subscribe to.
        attempts: How often missing channels are asked for before the session gives up with
            `Refused`; None asks for ever.
        times: How long it waits.
    """

    def __init__(
        self,
        channels: Sequence[str],
        *,
        attempts: int | None,
        times: SessionTimes | None = None,
    ) -> None:
        self._subscription = Subscription(channels)
        self._wanted = frozenset(channels)
        self._attempts = attempts
        self._times = times or SessionTimes()
        self._calls: dict[int, _Call] = {}
        self._last_id = 0
        self._heard_at = 0.0
        self._rounds = 0
        self._counted_rounds = 0
        self._will_pass = False
        self._retry_at: float | None = None
        self._refusals: dict[str, str] = {}
        self._refused_for_good = False
        self.ready = False
        """Whether every channel is acknowledged."""
        self.simulated = False
        """Whether the other side has said that it is a simulator."""

    def start(self, now: float) -> list[Event]:
        """The connection is open.

        Args:
            now: Monotonic time in seconds, here and below.
        """
        self._heard_at = now
        params = {"client_name": "kstream-agg", "client_version": metadata.version("kstream-agg")}
        return [self._call("hello", "public/hello", params, now)]

    def receive(self, frame: bytes, now: float) -> list[Event]:
        """A frame has arrived."""
        self._heard_at = now
        try:
            message = decode_frame(frame)
        except InvalidRecordError as error:
            return [BadFrame(frame, error)]
        if isinstance(message, TradeBatch):
            return [self._route(message, frame)]
        method = message.get("method")
        if method == "heartbeat":
            return self._on_heartbeat(message)
        if method is not None:
            return [Ignored(f"notification {method} {channel_of(message)}".rstrip())]
        if "error" in message or "result" in message:
            return self._on_answer(message, now)
        return [Ignored(f"message with the keys {sorted(message)}")]

    def poll(self, now: float) -> list[Event]:
        """Time has passed; call it several times a second."""
        silent = now - self._heard_at
        if silent > self._times.silence:
            return [Lost(f"nothing heard for {silent:.0f} s: three heartbeats are missing")]
        for call in self._calls.values():
            if now - call.sent_at > self._times.call_timeout:
                waited = now - call.sent_at
                return [Lost(f"no answer to {call.kind} for {waited:.0f} s")]
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._subscription.ask_for_missing()
        return self._send_due(now)

    def _route(self, batch: TradeBatch, frame: bytes) -> Event:
        if batch.channel in self._wanted:
            return Trades(batch)
        error = InvalidRecordError(
            f"trades of {batch.channel}, which was not asked for", stage="decode"
        )
        return BadFrame(frame, error)

    def _on_heartbeat(self, message: dict[str, Any]) -> list[Event]:
        params = message.get("params")
        if isinstance(params, dict) and params.get("type") == "test_request":
            # Its answer is not awaited: the next test_request shows that all is well.
            return [self._request("public/test", {})]
        return []

    def _on_answer(self, message: dict[str, Any], now: float) -> list[Event]:
        code, text = error_of(message)
        if code == _TOO_MANY_REQUESTS:
            return [Lost(f"the exchange refuses: {text}", _WAIT_AFTER_TOO_MANY_S)]
        number = message.get("id")
        if number is None:
            return self._on_error_without_id(code, text, now)
        call = self._calls.pop(number, None) if isinstance(number, int) else None
        if call is None:
            return [Ignored(f"answer to {number}")] if code is None else [Notice(text)]
        refusal = text if code is not None else None
        if call.kind == "hello":
            return self._on_hello(message, refusal, now)
        if call.kind == "heartbeat":
            return self._on_heartbeat_set(refusal, now)
        self._note_subscribed(call, message, code, text)
        return self._send_due(now) or self._settle(now)

    def _on_error_without_id(self, code: int | None, text: str, now: float) -> list[Event]:
        events: list[Event] = [Notice(f"the exchange says, without naming a call: {text}")]
        pending = [number for number, call in self._calls.items() if call.kind == "subscribe"]
        if code == _TOO_LARGE and pending:
            for number in pending:
                del self._calls[number]
            self._subscription.make_calls_smaller()
            self._subscription.ask_for_missing()
            events += self._send_due(now)
        return events

    def _on_hello(self, message: dict[str, Any], refusal: str | None, now: float) -> list[Event]:
        events: list[Event] = []
        if refusal is not None:
            events.append(Notice(f"the exchange does not answer our greeting: {refusal}"))
        result = message.get("result")
        version = result.get("version") if isinstance(result, dict) else None
        self.simulated = "simulator" in str(version)
        params = {"interval": self._times.heartbeat_interval}
        events.append(self._call("heartbeat", "public/set_heartbeat", params, now))
        return events

    def _on_heartbeat_set(self, refusal: str | None, now: float) -> list[Event]:
        if refusal is not None:
            return [Lost(f"the exchange refuses heartbeats: {refusal}")]
        self._subscription.ask_for_missing()
        return self._send_due(now) or self._settle(now)

    def _note_subscribed(
        self, call: _Call, message: dict[str, Any], code: int | None, text: str
    ) -> None:
        result = message.get("result")
        accepted = {str(name) for name in result} if isinstance(result, list) else set()
        self._subscription.acknowledged |= accepted
        for channel in call.channels:
            if channel not in accepted:
                self._refusals[channel] = text if code is not None else "left out without an error"
        if code in _PASSING:
            self._will_pass = True
        elif code is not None:
            self._refused_for_good = True

    def _settle(self, now: float) -> list[Event]:
        """Every call is answered, or else some event is on its way: how do we stand?"""
        if self._subscription.has_calls or any(c.kind == "subscribe" for c in self._calls.values()):
            return []
        missing = self._subscription.missing
        if not missing:
            self.ready = True
            return [Subscribed(self._subscription.wanted)]
        wait = min(_MAX_RETRY_S, self._times.retry * 2 ** min(self._rounds, 10))
        self._rounds += 1
        if not self._will_pass:
            self._counted_rounds += 1
        if self._attempts is not None and (
            self._refused_for_good or self._counted_rounds >= self._attempts
        ):
            return [Refused(self._refusal(missing))]
        self._retry_at = now + wait
        self._refused_for_good = self._will_pass = False
        reasons = "; ".join(dict.fromkeys(self._refusals.get(name, "") for name in missing))
        return [ChannelsMissing(missing, reasons, wait)]

    def _refusal(self, missing: tuple[str, ...]) -> ChannelRefusedError:
        details = "; ".join(f"'{name}' ({self._refusals.get(name, '?')})" for name in missing)
        if any(str(_RAW_NEEDS_LOGIN) in self._refusals.get(name, "") for name in missing):
            better = missing[0].removesuffix(".raw") + ".100ms"
            remedy = f"ask for '{better}' instead: it delivers every trade too, without a login"
        else:
            remedy = (
                "check the setting 'channels': trades.{kind}.{currency}.{interval} or "
                "trades.{instrument}.{interval}, e.g. trades.option.BTC.100ms"
            )
        return ChannelRefusedError(f"the exchange did not subscribe {details}", remedy=remedy)

    def _send_due(self, now: float) -> list[Event]:
        channels = self._subscription.next_call(now)
        if channels is None:
            return []
        params = {"channels": list(channels)}
        return [self._call("subscribe", "public/subscribe", params, now, channels)]

    def _call(
        self,
        kind: _Kind,
        method: str,
        params: dict[str, Any],
        now: float,
        channels: tuple[str, ...] = (),
    ) -> Send:
        send = self._request(method, params)
        self._calls[self._last_id] = _Call(kind, now, channels)
        return send

    def _request(self, method: str, params: dict[str, Any]) -> Send:
        self._last_id += 1
        return Send(request_text(self._last_id, method, params))
