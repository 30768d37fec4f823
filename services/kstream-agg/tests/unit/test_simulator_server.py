"""The simulator on a port: what clients of the exchange see."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close as CloseFrame
from websockets.sync.client import connect as connect_sync

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulator import running_simulator, simulator_in_thread

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from kstream_agg.deribit.simulator import SimulatorHandle

RECORDING = generate_trades(seed=5, count=3000)
ALL = "trades.any.BTC.100ms"


async def call(client: ClientConnection, method: str, **params: object) -> Any:  # noqa: ANN401 - whatever JSON gives
    await client.send(json.dumps({"id": 1, "method": method, "params": params}))
    while "id" not in (answer := json.loads(await client.recv())):
        pass
    return answer["result"]


async def read_trades(client: ClientConnection, count: int) -> list[dict[str, Any]]:
    trades: list[dict[str, Any]] = []
    while len(trades) < count:
        frame = json.loads(await client.recv())
        trades += frame.get("params", {}).get("data", [])
    return trades


def get(url: str) -> tuple[int, Any, str | None]:
    try:
        with urllib.request.urlopen(url) as reply:  # noqa: S310 - a loopback address of ours
            return reply.status, json.load(reply), reply.headers["Server"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers["Server"]


def test_every_trade_comes_once_and_in_order() -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with (
            running_simulator(RECORDING) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            await client.send(
                json.dumps({"id": 1, "method": "public/subscribe", "params": {"channels": [ALL]}})
            )
            trades = await read_trades(client, len(RECORDING.trades))
            await simulator.played()
            assert simulator.exchange.published == len(trades)
            return trades

    assert asyncio.run(scenario()) == list(RECORDING.trades)


def test_nothing_is_played_before_the_first_subscription() -> None:
    async def scenario() -> None:
        async with (
            running_simulator(RECORDING) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            assert (await call(client, "public/hello"))["version"].startswith("simulator-")
            assert await call(client, "public/subscribe", channels=["trades.x.100ms"]) == []
            last = await call(client, "public/get_last_trades_by_currency", currency="BTC")
            assert last == {"trades": [], "has_more": False}
            assert simulator.exchange.published == 0

    asyncio.run(scenario())


def small_socket(url: str) -> socket.socket:
    """A connection whose receive buffer holds far less than a recording."""
    parts = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.connect((parts.hostname, parts.port))
    connection.settimeout(0)
    return connection


def test_a_slow_reader_holds_the_playback_back() -> None:
    recording = generate_trades(seed=6, count=40_000)

    async def until_it_stands_still(simulator: SimulatorHandle) -> None:
        seen, same = 0, 0
        while same < 20:
            # Each call takes its turns in the player's own event loop.
            status, _, _ = await asyncio.to_thread(get, f"{simulator.rest_url}/public/get_time")
            assert status == 200
            same = same + 1 if simulator.exchange.published == seen else 0
            seen = simulator.exchange.published

    async def scenario() -> None:
        async with (
            running_simulator(recording) as simulator,
            connect(
                simulator.websocket_url,
                sock=small_socket(simulator.websocket_url),
                max_queue=1,
                compression=None,
            ) as slow,
        ):
            await call(slow, "public/subscribe", channels=[ALL])
            await until_it_stands_still(simulator)
            assert 0 < simulator.exchange.published < len(recording.trades)
            assert await read_trades(slow, len(recording.trades)) == list(recording.trades)
            await simulator.played()

    asyncio.run(scenario())


def test_a_client_that_goes_away_does_not_stop_the_others() -> None:
    recording = generate_trades(seed=6, count=20_000)

    async def scenario() -> None:
        async with (
            running_simulator(recording) as simulator,
            connect(simulator.websocket_url) as stays,
        ):
            goes = await connect(simulator.websocket_url, max_queue=1)
            await call(goes, "public/subscribe", channels=[ALL])
            await call(stays, "public/subscribe", channels=["trades.option.BTC.100ms"])
            goes.transport.abort()
            await simulator.played()
            assert simulator.exchange.published == len(recording.trades)
            assert (await call(stays, "public/status"))["locked"] == "false"

    asyncio.run(scenario())


def test_silence_after_a_test_request_closes_the_connection() -> None:
    clock = ManualClock()

    async def scenario() -> None:
        async with (
            running_simulator(RECORDING, clock=clock) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            assert await call(client, "public/set_heartbeat", interval=10) == "ok"
            clock.advance(12.5)
            assert json.loads(await client.recv())["params"] == {"type": "test_request"}
            clock.advance(10)
            with pytest.raises(ConnectionClosedError) as caught:
                await client.recv()
            assert caught.value.rcvd == CloseFrame(4000, "heartbeat close")

    asyncio.run(scenario())


def test_heartbeats_that_are_held_back_are_not_sent_and_the_connection_is_closed() -> None:
    clock = ManualClock()

    async def scenario() -> None:
        async with (
            running_simulator(RECORDING, clock=clock) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            assert await call(client, "public/set_heartbeat", interval=10) == "ok"
            simulator.adversary.change({"hold_heartbeats": True})
            question = json.dumps({"id": 1, "method": "public/get_time", "params": {}})

            async def ask_without_end() -> None:
                while True:
                    clock.advance(0.5)
                    await client.send(question)
                    assert json.loads(await client.recv())["id"] == 1  # and no test request

            with pytest.raises(ConnectionClosedError) as caught:
                await ask_without_end()
            assert caught.value.rcvd == CloseFrame(4000, "heartbeat close")

    asyncio.run(scenario())


def test_an_idle_connection_is_cut_without_a_closing_frame() -> None:
    clock = ManualClock()

    async def scenario() -> None:
        async with (
            running_simulator(RECORDING, clock=clock) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            clock.advance(61)
            with pytest.raises(ConnectionClosedError) as caught:
                await client.recv()
            assert caught.value.rcvd is None

    asyncio.run(scenario())


def test_rest() -> None:
    with simulator_in_thread(RECORDING) as simulator:
        with connect_sync(simulator.websocket_url) as client:
            client.send(
                json.dumps({"id": 1, "method": "public/subscribe", "params": {"channels": [ALL]}})
            )
            read = 0
            while read < len(RECORDING.trades):
                read += len(json.loads(client.recv()).get("params", {}).get("data", []))
            simulator.wait_played()
        base = simulator.rest_url + "/public/"
        status, body, server = get(
            base + "get_last_trades_by_currency?currency=BTC&count=2&sorting=asc"
        )
        assert (status, server) == (200, "deribit-simulator")
        assert body["result"]["trades"] == list(RECORDING.trades[:2])
        assert "id" not in body
        status, body, _ = get(base + "get_last_trades_by_currency?currency=BTC&count=1001")
        assert (status, body["error"]["data"]["param"]) == (400, "count")
        assert get(base + "set_heartbeat?interval=10")[1]["error"]["code"] == 10030
        assert get(base + "nothing")[1]["error"]["code"] == -32601


def test_other_paths_are_not_found() -> None:
    with simulator_in_thread(RECORDING) as simulator:
        url = simulator.websocket_url.replace("/ws/api/v2", "/other")
        with pytest.raises(InvalidStatus, match="404"):
            connect_sync(url)


def test_timestamps_can_end_now_and_instruments_be_chosen() -> None:
    with simulator_in_thread(
        RECORDING, shift_to_now=True, instruments="BTC-PERPETUAL"
    ) as simulator:
        _, body, _ = get(simulator.rest_url + "/public/get_time")
        last = simulator.recording.trades[-1]["timestamp"]
        assert 0 <= body["result"] - last < 60_000
        assert set(simulator.recording.instruments) == {"BTC-PERPETUAL"}


def test_wait_played_is_bounded() -> None:
    with simulator_in_thread(RECORDING) as simulator, pytest.raises(UnavailableError):
        simulator.wait_played(timeout_s=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speed": "fast"}, "speed: 'fast' is neither a number above 0 nor max"),
        ({"speed": 0}, "speed: '0' is neither"),
        ({"loop": -1}, "loop: "),
        ({"colour": 1}, "colour: "),
        ({"instruments": "("}, "is not a regular expression"),
        ({"instruments": "x"}, "has no trade to play"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught, simulator_in_thread(RECORDING, **options):
        pass
    assert said in str(caught.value)


def test_a_taken_port() -> None:
    with simulator_in_thread(RECORDING) as first:
        port = int(first.rest_url.split(":")[2].split("/")[0])
        with (
            pytest.raises(UnavailableError, match=str(port)),
            simulator_in_thread(RECORDING, port=port),
        ):
            pass
