"""The exchange's history over REST: one call in, one page of trades out. Moves bytes.

https://docs.deribit.com (public/get_last_trades_by_…). What passes by itself, an exchange under
maintenance for one, is tried again here; after that it is `UnavailableError`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import httpx2
import msgspec

from kstream_agg.core.errors import ContractError, InvalidRecordError, UnavailableError
from kstream_agg.core.metrics import HISTORY_REQUESTS
from kstream_agg.deribit.backoff import Backoff
from kstream_agg.deribit.frames import TradeBatch, read_trades
from kstream_agg.deribit.rpc import PASSING, TOO_MANY_REQUESTS, error_of
from kstream_agg.deribit.trades import Trade

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.deribit.rate import RateLimit

__all__ = ["HistoryApi", "HistoryRefusedError", "Page"]

_TRIES: Final = 4
_WAIT_AFTER_TOO_MANY_S: Final = 2.0  # an emptied pool of credits is full again after 5 s
_SERVER_ERRORS: Final = range(500, 600)


class HistoryRefusedError(ContractError):
    """The exchange refuses a call for good: no such currency or instrument there."""


@dataclass(slots=True)
class Page:
    """Trades in the order they came, and whether the exchange says that there are more."""

    batch: TradeBatch
    has_more: bool
    simulated: bool = False


class _Result(msgspec.Struct):
    trades: list[Trade]
    has_more: bool = False


class _Reply(msgspec.Struct):
    result: _Result


_decode_reply = msgspec.json.Decoder(_Reply).decode


class HistoryApi:
    """One host of the exchange's history.

    Args:
        base_url: E.g. `https://www.deribit.com/api/v2`.
        http: Makes the calls.
        rate: Says when.
        clock: What time it is.
        metrics: Counts the calls.
    """

    def __init__(
        self,
        base_url: str,
        http: httpx2.AsyncClient,
        rate: RateLimit,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._base_url = base_url
        self._http = http
        self._rate = rate
        self._clock = clock
        self._requests = metrics.counter(HISTORY_REQUESTS)
        self.name = httpx2.URL(base_url).host

    async def trades(self, method: str, params: Mapping[str, str | int]) -> Page:
        """Call one of the methods that give trades.

        Args:
            method: E.g. `get_last_trades_by_instrument`.
            params: Its parameters.

        Raises:
            UnavailableError: The host does not answer, or not now.
            HistoryRefusedError: It refuses the call.
        """
        backoff = Backoff(0.5, 8.0, random.random)
        failure = UnavailableError(f"{self.name} was not asked")
        for _ in range(_TRIES):
            await asyncio.sleep(self._rate.wait_s(self._clock.monotonic()))
            try:
                page = await self._call(method, params)
            except UnavailableError as error:
                failure = error
                self._requests.labels(self.name, "failed").inc()
                await asyncio.sleep(backoff.next_wait())
            except HistoryRefusedError:
                self._requests.labels(self.name, "refused").inc()
                raise
            else:
                self._requests.labels(self.name, "answered").inc()
                return page
        raise failure

    async def _call(self, method: str, params: Mapping[str, str | int]) -> Page:
        url = f"{self._base_url}/public/{method}"
        try:
            answer = await self._http.get(url, params=dict(params))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"{self.name} does not answer: {reason}") from error
        if answer.status_code == 429:
            self._have_had_too_many()
        if answer.status_code in _SERVER_ERRORS:
            raise UnavailableError(f"{self.name} answers with HTTP {answer.status_code}")
        simulated = "simulator" in answer.headers.get("Server", "")
        try:
            reply = _decode_reply(answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_slowly(answer.content, simulated=simulated)
        return Page(TradeBatch("", reply.result.trades), reply.result.has_more, simulated)

    def _read_slowly(self, content: bytes, *, simulated: bool) -> Page:
        try:
            message, batch = read_trades(content)
        except InvalidRecordError as error:
            raise UnavailableError(f"{self.name} gives no readable answer: {error}") from error
        code, text = error_of(message)
        if code is not None:
            self._refuse(code, text)
        if batch is None:
            raise UnavailableError(f"{self.name} gives an answer without trades")
        result: dict[str, Any] = message["result"]
        return Page(batch, bool(result.get("has_more")), simulated)

    def _refuse(self, code: int, text: str) -> NoReturn:
        if code == TOO_MANY_REQUESTS:
            self._have_had_too_many()
        if code in PASSING:
            raise UnavailableError(f"{self.name} says: {text}")
        raise HistoryRefusedError(f"{self.name} says: {text}")

    def _have_had_too_many(self) -> NoReturn:
        self._rate.pause(_WAIT_AFTER_TOO_MANY_S, self._clock.monotonic())
        raise UnavailableError(f"{self.name} has had too many requests")
