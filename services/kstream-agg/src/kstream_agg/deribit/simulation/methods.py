"""The calls that answer over websocket and REST alike: history, instruments, time.

Trades calls follow the exchange: `count` 10 by default and 1000 at most; bounds are inclusive;
`asc` and `desc` sort by trade id. With `default` no order is promised: here the trades come as
they happened, the earliest of the range when it has a start, else the latest. `has_more` speaks
of the asked range. Unlike the exchange, time calls reach as far back as trades are kept, so that
a recording's own timestamps can be asked for.
"""

from __future__ import annotations

from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from kstream_agg.deribit.simulation.instruments import KINDS
from kstream_agg.deribit.simulation.rpc import Params, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kstream_agg.deribit.simulation.exchange import Exchange, PublishedTrade
    from kstream_agg.deribit.simulation.rpc import Moment

__all__ = ["SIMULATOR_VERSION", "call_public", "call_rest"]

SIMULATOR_VERSION: Final = f"simulator-{version('kstream-agg')}"
"""What `public/hello` answers: clients can tell that trades are simulated."""

_MAX_COUNT: Final = 1_000
_SORTINGS: Final = ("asc", "desc", "default")
_WEBSOCKET_METHODS: Final = frozenset(
    {
        "public/subscribe",
        "public/unsubscribe",
        "public/unsubscribe_all",
        "public/set_heartbeat",
        "public/disable_heartbeat",
    }
)


def call_rest(exchange: Exchange, method: str, params: Params, now: Moment) -> object:
    """The result of a call over REST.

    Raises:
        RpcError: The method is unknown or for websockets only, or the call is refused.
    """
    if method in _WEBSOCKET_METHODS:
        raise RpcError(10030, "must_be_websocket_request")
    return call_public(exchange, method, params, now)


def call_public(exchange: Exchange, method: str, params: Params, now: Moment) -> object:
    """The result of a call.

    Raises:
        RpcError: The method is unknown, or the call is refused.
    """
    handler = _METHODS.get(method)
    if handler is not None:
        return handler(exchange, params, now)
    if method.startswith("private/"):
        raise RpcError(13009, "unauthorized", {"reason": "invalid_token", "param": "access_token"})
    raise RpcError(-32601, "Method not found")


def _hello(exchange: Exchange, params: Params, now: Moment) -> object:
    del exchange, params, now
    return {"version": SIMULATOR_VERSION}


def _test(exchange: Exchange, params: Params, now: Moment) -> object:
    del exchange, now
    if params.choice("expected_result", ("", "exception"), "") == "exception":
        raise RpcError(11029, "invalid_arguments", "expected_result")
    return {"version": SIMULATOR_VERSION}


def _get_time(exchange: Exchange, params: Params, now: Moment) -> object:
    del exchange, params
    return now.wall_ms


def _status(exchange: Exchange, params: Params, now: Moment) -> object:
    del exchange, params, now
    return {"locked": "false", "locked_indices": []}


def _get_instruments(exchange: Exchange, params: Params, now: Moment) -> object:
    del now
    currency = _currency(exchange, params)
    kind = params.choice("kind", KINDS, "any")
    return [] if params.flag("expired") else exchange.listings(currency, kind)


def _by_currency(exchange: Exchange, params: Params, now: Moment) -> object:
    del now
    low_id, high_id = (_id_number(params, name) for name in ("start_id", "end_id"))
    low_ms, high_ms = _optional_times(params)
    candidates = _currency_trades(exchange, params)
    chosen = _between(_between(candidates, "number", low_id, high_id), "timestamp", low_ms, high_ms)
    return _page(chosen, params, has_start=low_id is not None or low_ms is not None)


def _by_currency_and_time(exchange: Exchange, params: Params, now: Moment) -> object:
    del now
    times = params.required_integer("start_timestamp"), params.required_integer("end_timestamp")
    kind = params.choice("kind", KINDS, "any")
    currency = _currency(exchange, params)
    chosen = exchange.currency_trades_between(currency, kind, *times)
    if currency != "any" and params.choice("sorting", _SORTINGS, "default") != "desc":
        # Enough for a page, for ids that differ a little from the order in which trades happened,
        # and to see that there is more.
        chosen = islice(chosen, _MAX_COUNT + 1_000)
    return _page(chosen, params, has_start=True)


def _by_instrument(exchange: Exchange, params: Params, now: Moment) -> object:
    del now
    low_seq, high_seq = params.integer("start_seq", None), params.integer("end_seq", None)
    low_ms, high_ms = _optional_times(params)
    candidates = _instrument_trades(exchange, params)
    chosen = _between(
        _between(candidates, "trade_seq", low_seq, high_seq), "timestamp", low_ms, high_ms
    )
    return _page(chosen, params, has_start=low_seq is not None or low_ms is not None)


def _by_instrument_and_time(exchange: Exchange, params: Params, now: Moment) -> object:
    del now
    times = params.required_integer("start_timestamp"), params.required_integer("end_timestamp")
    chosen = _between(_instrument_trades(exchange, params), "timestamp", *times)
    return _page(chosen, params, has_start=True)


_METHODS: Final[dict[str, Callable[[Exchange, Params, Moment], object]]] = {
    "public/hello": _hello,
    "public/test": _test,
    "public/get_time": _get_time,
    "public/status": _status,
    "public/get_instruments": _get_instruments,
    "public/get_last_trades_by_currency": _by_currency,
    "public/get_last_trades_by_currency_and_time": _by_currency_and_time,
    "public/get_last_trades_by_instrument": _by_instrument,
    "public/get_last_trades_by_instrument_and_time": _by_instrument_and_time,
}


def _currency(exchange: Exchange, params: Params) -> str:
    currency = params.text("currency")
    if currency != "any" and currency not in exchange.currencies:
        known = ", ".join(sorted(exchange.currencies))
        raise RpcError.wrong_param("currency", f"must be any or one of {known}")
    return currency


def _currency_trades(exchange: Exchange, params: Params) -> Iterable[PublishedTrade]:
    currency = _currency(exchange, params)
    return exchange.currency_trades(currency, params.choice("kind", KINDS, "any"))


def _instrument_trades(exchange: Exchange, params: Params) -> Iterable[PublishedTrade]:
    name = params.text("instrument_name")
    if name not in exchange.instruments:
        raise RpcError(10020, "invalid_or_unsupported_instrument")
    return exchange.instrument_trades(name)


def _optional_times(params: Params) -> tuple[int | None, int | None]:
    return params.integer("start_timestamp", None), params.integer("end_timestamp", None)


def _id_number(params: Params, name: str) -> int | None:
    """The number in an id such as `ETH-15`; BTC's ids are bare digits."""
    try:
        digits = params.text(name).rpartition("-")[2]
    except RpcError:
        return params.integer(name, None)
    if not digits.isdecimal():
        raise RpcError.wrong_param(name, "is not a trade id")
    return int(digits)


def _between(
    trades: Iterable[PublishedTrade], key: str, low: int | None, high: int | None
) -> Iterable[PublishedTrade]:
    if low is None and high is None:
        return trades
    index = {"trade_seq": 1, "number": 2, "timestamp": 3}[key]
    lowest = -1 if low is None else low
    if high is None:
        return [trade for trade in trades if lowest <= cast(int, trade[index])]
    return [trade for trade in trades if lowest <= cast(int, trade[index]) <= high]


def _page(chosen: Iterable[PublishedTrade], params: Params, *, has_start: bool) -> dict[str, Any]:
    count = params.integer("count", 10, low=1, high=_MAX_COUNT)
    sorting = params.choice("sorting", _SORTINGS, "default")
    found = list(chosen)
    if sorting == "default":
        page = found[:count] if has_start else found[-count:]
    else:
        found.sort(key=lambda trade: trade.number, reverse=sorting == "desc")
        page = found[:count]
    return {
        "trades": [msgspec.Raw(trade.later or trade.wire) for trade in page],
        "has_more": len(found) > len(page),
    }
