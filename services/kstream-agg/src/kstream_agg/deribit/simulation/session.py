"""One client's connection to the simulated exchange: texts and time in, frames out, no I/O.

Heartbeats keep the measured cadence: with interval 10 the first test_request comes 12 s after
they were asked for, then one every 10.65 s; an idle connection also gets plain heartbeats. A
test_request unanswered for 10 s ends the connection (code 4000, `heartbeat close`), and one with
neither heartbeat nor subscription is cut after 60.5 s without a closing frame (code 1006).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kstream_agg.deribit.simulation.channels import Channel, parse_channel
from kstream_agg.deribit.simulation.methods import call_public
from kstream_agg.deribit.simulation.rpc import (
    MAX_REQUEST_BYTES,
    Params,
    RpcError,
    error_reply,
    reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kstream_agg.deribit.simulation.exchange import Exchange, PublishedTrade
    from kstream_agg.deribit.simulation.rpc import Moment

__all__ = ["CLIENT_ID", "CLIENT_SECRET", "Close", "Output", "SimulatedSession"]

CLIENT_ID: Final = "simulator"
CLIENT_SECRET: Final = "simulated"  # noqa: S105 - guards nothing: it opens recorded trades

_FIRST_TEST: Final = 1.2  # intervals until the first test_request
_NEXT_TEST: Final = 1.065  # intervals between test_requests
_ANSWER_WITHIN_S: Final = 10.0
_IDLE_LIMIT_S: Final = 60.5
_AGG2_S: Final = 1.0
_TOO_MANY_REQUESTS: Final = 10028
_TOKEN: Final = "simulated-token"  # noqa: S105 - as above
_PLATFORM_STATE: Final = "platform_state"
_TEST_REQUEST: Final = b'{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}'
_HEARTBEAT: Final = b'{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"heartbeat"}}'


@dataclass(frozen=True, slots=True)
class Close:
    """The server ends the connection; code 1006 means: without a closing frame."""

    code: int
    reason: str = ""


@dataclass(slots=True)
class Output:
    """What goes to the client: frames in order, then perhaps the end."""

    frames: list[bytes] = field(default_factory=list)
    close: Close | None = None


@dataclass(slots=True)
class _Feed:
    """A subscribed channel and the trades that wait for its next notification."""

    channel: Channel
    head: bytes
    sent_at: float
    pending: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Heartbeat:
    interval_s: float
    next_test: float
    unanswered_since: float | None = None


class SimulatedSession:
    """The protocol's state of one connection.

    Args:
        exchange: The world it shows.
        opened: When the connection was opened.
        seed: Orders the channels in acknowledgements, which is not the order of the request.
        frame_trades: A notification holds at most so many trades.
        token_s: So long a login lasts without being renewed.
    """

    def __init__(
        self,
        exchange: Exchange,
        opened: Moment,
        *,
        seed: int = 0,
        frame_trades: int = 100,
        token_s: int = 900,
    ) -> None:
        self._exchange = exchange
        self._rng = random.Random(seed)  # noqa: S311 - an order, no secret
        self._frame_trades = frame_trades
        self._feeds: dict[str, _Feed] = {}
        self._routes: dict[str, list[_Feed]] = {}
        self._heartbeat: _Heartbeat | None = None
        self._token_s = token_s
        self._authorized_until: float | None = None
        self.watches_platform = False
        """Whether `platform_state` is subscribed."""
        self._last_in = self._last_out = opened.monotonic

    @property
    def subscribed(self) -> bool:
        """Whether any channel is on."""
        return bool(self._feeds)

    def handle(self, text: str | bytes, now: Moment) -> Output:
        """Answer a client's frame."""
        self._last_in = self._last_out = now.monotonic
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > MAX_REQUEST_BYTES:
            error = RpcError(-32600, "request entity too large")
            return Output([error_reply(None, error, now)])
        try:
            request = msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = RpcError(11050, "bad_request", "invalid json")
            return Output([error_reply(None, error, now)])
        request_id = request.get("id")
        try:
            return Output([reply(request_id, self._call(request, now), now)])
        except RpcError as error:
            return Output([error_reply(request_id, error, now)])

    def refuse(self, text: str | bytes, error: RpcError, now: Moment) -> Output:
        """Answer a client's frame with an error; out of credits, the session ends."""
        try:
            request = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            request = {}
        close = Close(1000, error.short) if error.code == _TOO_MANY_REQUESTS else None
        return Output([error_reply(request.get("id"), error, now)], close)

    def hang_up(self) -> None:
        """The connection is of no use any more: nothing is sent on it."""
        self._feeds.clear()
        self._routes.clear()

    def publish(self, trades: Sequence[PublishedTrade], now: Moment) -> list[bytes]:
        """Trades that have just happened; the notifications that are due.

        Channels of 100ms are notified at once: the caller publishes about ten times a second.
        """
        for trade in trades:
            feeds = self._routes.get(trade.instrument)
            if feeds is None:
                feeds = self._route(trade.instrument)
            for feed in feeds:
                feed.pending.append(trade.wire)
        return self._notifications(now)

    def poll(self, now: Moment) -> Output:
        """What time alone brings: late notifications, heartbeats, the end."""
        output = Output(self._notifications(now))
        if self._authorized_until is not None and now.monotonic > self._authorized_until:
            output.close = Close(4001, "token expired")
            return output
        beat = self._heartbeat
        if beat is None:
            if not self._feeds and now.monotonic - self._last_in >= _IDLE_LIMIT_S:
                output.close = Close(1006)
            return output
        waited = 0.0 if beat.unanswered_since is None else now.monotonic - beat.unanswered_since
        if waited >= _ANSWER_WITHIN_S:
            output.close = Close(4000, "heartbeat close")
        elif now.monotonic >= beat.next_test:
            output.frames.append(_TEST_REQUEST)
            beat.next_test = now.monotonic + beat.interval_s * _NEXT_TEST
            if beat.unanswered_since is None:
                beat.unanswered_since = now.monotonic
        elif now.monotonic - self._last_out >= beat.interval_s:
            output.frames.append(_HEARTBEAT)
        if output.frames:
            self._last_out = now.monotonic
        return output

    def _call(self, request: dict[str, Any], now: Moment) -> object:
        method, values = request.get("method"), request.get("params", {})
        if not isinstance(method, str):
            raise RpcError(-32600, "Invalid Request")
        if not isinstance(values, dict):
            raise RpcError.wrong_param("params", "must be an object")
        params = Params(values)
        handler = self._own_methods().get(method)
        if handler is not None:
            return handler(params, now)
        if method == "public/test" and self._heartbeat is not None:
            self._heartbeat.unanswered_since = None
        return call_public(self._exchange, method, params, now)

    def _own_methods(self) -> dict[str, Callable[[Params, Moment], object]]:
        return {
            "public/auth": self._auth,
            "public/subscribe": self._subscribe,
            "public/unsubscribe": self._unsubscribe,
            "public/unsubscribe_all": self._unsubscribe_all,
            "public/set_heartbeat": self._set_heartbeat,
            "public/disable_heartbeat": self._disable_heartbeat,
        }

    def _auth(self, params: Params, now: Moment) -> object:
        kind = params.choice("grant_type", ("client_credentials", "refresh_token"), "")
        if kind == "client_credentials":
            given = params.text("client_id"), params.text("client_secret")
            right = given == (CLIENT_ID, CLIENT_SECRET)
        else:
            right = params.text("refresh_token") == _TOKEN and self._authorized_until is not None
        if not right:
            raise RpcError(13004, "invalid_credentials")
        self._authorized_until = now.monotonic + self._token_s
        return {
            "access_token": _TOKEN,
            "refresh_token": _TOKEN,
            "expires_in": self._token_s,
            "scope": "connection mainaccount",
            "token_type": "bearer",
        }

    def _subscribe(self, params: Params, now: Moment) -> object:
        names = params.channels()
        if any(name.endswith(".raw") for name in names) and self._authorized_until is None:
            raise RpcError(13778, "raw_subscriptions_not_available_for_unauthorized")
        asked = [parse_channel(name) for name in names]
        listed = [item for item in asked if item is not None and self._exchange.lists(item)]
        for channel in listed:
            name = msgspec.json.encode(channel.name)
            head = b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":' + name
            feed = _Feed(channel, head + b',"data":[', now.monotonic)
            self._feeds.setdefault(channel.name, feed)
        self._routes.clear()
        acknowledged = [channel.name for channel in listed]
        if _PLATFORM_STATE in names:
            self.watches_platform = True
            acknowledged.append(_PLATFORM_STATE)
        self._rng.shuffle(acknowledged)
        return acknowledged

    def _unsubscribe(self, params: Params, now: Moment) -> object:
        del now
        removed = [name for name in params.channels() if self._feeds.pop(name, None)]
        self._routes.clear()
        return removed

    def _unsubscribe_all(self, params: Params, now: Moment) -> object:
        del params, now
        self._feeds.clear()
        self._routes.clear()
        return "ok"

    def _set_heartbeat(self, params: Params, now: Moment) -> object:
        interval = params.required_integer("interval")
        if interval < 10:
            raise RpcError.wrong_param("interval", "must be at least 10")
        self._heartbeat = _Heartbeat(interval, now.monotonic + interval * _FIRST_TEST)
        return "ok"

    def _disable_heartbeat(self, params: Params, now: Moment) -> object:
        del params, now
        self._heartbeat = None
        return "ok"

    def _route(self, instrument_name: str) -> list[_Feed]:
        instrument = self._exchange.instruments[instrument_name]
        feeds = [feed for feed in self._feeds.values() if feed.channel.carries(instrument)]
        self._routes[instrument_name] = feeds
        return feeds

    def _notifications(self, now: Moment) -> list[bytes]:
        frames: list[bytes] = []
        size = self._frame_trades
        for feed in self._feeds.values():
            waiting = feed.pending
            if not waiting or (
                feed.channel.interval == "agg2"
                and len(waiting) < size
                and now.monotonic - feed.sent_at < _AGG2_S
            ):
                continue
            frames += [
                feed.head + b",".join(waiting[start : start + size]) + b"]}}"
                for start in range(0, len(waiting), size)
            ]
            feed.pending = []
            feed.sent_at = now.monotonic
        if frames:
            self._last_out = now.monotonic
        return frames
