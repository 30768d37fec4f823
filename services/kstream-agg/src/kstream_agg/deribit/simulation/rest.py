"""The simulated exchange's calls over HTTP, with the faults of a scenario."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from kstream_agg.deribit.simulation.methods import call_rest
from kstream_agg.deribit.simulation.rpc import Params, RpcError, error_reply, reply

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Response

    from kstream_agg.deribit.simulation.adversary import Adversary
    from kstream_agg.deribit.simulation.exchange import Exchange
    from kstream_agg.deribit.simulation.rpc import Moment

__all__ = ["RestCalls", "respond_json"]

_LEAKED = 2  # trades beyond the asked range, in an answer that leaks


class RestCalls:
    """Answers the calls.

    Args:
        exchange: The world they are about.
        adversary: What goes wrong.
    """

    def __init__(self, exchange: Exchange, adversary: Adversary) -> None:
        self._exchange = exchange
        self._adversary = adversary

    async def answer(
        self, connection: ServerConnection, method: str, query: dict[str, str], now: Moment
    ) -> Response:
        """The answer to one call; it can be slow, wrong or no answer at all."""
        await asyncio.sleep(self._adversary.rest_delay_s())
        failure = self._adversary.rest_failure()
        if failure == 0:
            connection.transport.abort()
        if failure is not None:
            return connection.respond(failure or 500, "<html>no</html>\n")
        try:
            status, body = 200, reply(None, self._result(method, query, now), now)
        except RpcError as error:
            status, body = 400, error_reply(None, error, now)
        return respond_json(connection, status, body)

    def _result(self, method: str, query: dict[str, str], now: Moment) -> object:
        if self._adversary.in_maintenance(now):
            raise RpcError(11051, "system_maintenance")
        result = call_rest(self._exchange, method, Params(query), now)
        later = [msgspec.Raw(trade.wire) for trade in self._exchange.latest(_LEAKED)]
        return self._adversary.spoil(method, result, later)


def respond_json(connection: ServerConnection, status: int, body: bytes) -> Response:
    """A response with JSON in it."""
    response = connection.respond(status, body.decode())
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response
