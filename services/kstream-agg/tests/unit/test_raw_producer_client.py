"""The client over real sockets: it receives everything, bears everything, and comes back."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from websockets.asyncio.server import ServerConnection, serve

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import ChannelRefusedError
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import SESSION_CONNECTS, Metrics
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import TelemetrySettings
from kstream_agg.core.telemetry import Telemetry
from kstream_agg.deribit.backoff import Backoff
from kstream_agg.deribit.client import StreamClient
from kstream_agg.deribit.events import BadFrame
from kstream_agg.deribit.frames import TradeBatch, decode_frame
from kstream_agg.deribit.handover import HandOver, Inquiry, Receipt
from kstream_agg.deribit.settings import ExchangeSettings
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulator import running_simulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

OPTIONS = "trades.option.BTC.100ms"
FUTURES = "trades.future.BTC.100ms"
WAIT_S = 20.0


class Rig:
    """A client with a hand-over that the test empties."""

    def __init__(
        self,
        url: str,
        channels: Sequence[str] = (OPTIONS,),
        *,
        limit: int = 10_000_000,
        jitter: Callable[[], float] = lambda: 1.0,
        **settings: Any,  # noqa: ANN401 - fields of ExchangeSettings, checked by it
    ) -> None:
        self.stop = threading.Event()
        self.health = Health()
        self.metrics = Metrics(CollectorRegistry())
        telemetry = Telemetry(TelemetrySettings(), "test")
        context = ServiceContext(
            "test", SystemClock(), self.metrics, self.health, telemetry, self.stop
        )
        self.handover = HandOver(limit)
        exchange = ExchangeSettings(url=url, reconnect_min_s=0.01, reconnect_max_s=0.02, **settings)
        self.client = StreamClient(exchange, channels, self.handover, context, jitter=jitter)

    async def receive(self) -> Receipt:
        receipt = await asyncio.to_thread(self.handover.get, WAIT_S)
        assert isinstance(receipt, Receipt), f"nothing came; not ready: {self.health.not_ready()}"
        return receipt

    async def receive_trades(self, count: int) -> list[tuple[str, int]]:
        """(instrument, trade_seq) of the next trades, at least `count`."""
        found: list[tuple[str, int]] = []
        while len(found) < count:
            content = (await self.receive()).content
            assert isinstance(content, TradeBatch)
            assert not content.rejected
            found += [(trade.instrument_name, trade.trade_seq) for trade in content.trades]
        return found

    @property
    def connects(self) -> float:
        return self.metrics.registry.get_sample_value(f"{SESSION_CONNECTS.name}_total") or 0.0


async def while_running(rig: Rig, steps: Callable[[], Awaitable[None]]) -> None:
    """Run steps beside the client, then stop it; whatever the client raises is raised."""
    client = asyncio.create_task(rig.client.run())
    checks = asyncio.ensure_future(steps())
    try:
        await asyncio.wait({client, checks}, return_when=asyncio.FIRST_COMPLETED)
        if client.done():
            client.result()
        await checks
    finally:
        checks.cancel()
        rig.stop.set()
        await client if not client.done() else None


def answer_to(request: dict[str, Any], result: object) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})


async def greet(websocket: ServerConnection) -> None:
    """Answer greeting, heartbeat and subscription as the exchange does."""
    for _ in range(3):
        request = json.loads(await websocket.recv())
        result = request["params"].get("channels", {"version": "1.2.26"})
        await websocket.send(answer_to(request, result))


def notification(seq: int) -> str:
    trade = {
        "timestamp": 1789344933994,
        "price": 1,
        "amount": 1,
        "direction": "buy",
        "instrument_name": "BTC-27MAR26-100000-C",
        "trade_seq": seq,
        "trade_id": str(seq),
        "tick_direction": 1,
    }
    params = {"channel": OPTIONS, "data": [trade]}
    return json.dumps({"method": "subscription", "params": params})


def run_against(
    script: Callable[[ServerConnection, int], Awaitable[None]],
    steps: Callable[[Rig], Awaitable[None]],
    **settings: Any,  # noqa: ANN401 - fields of ExchangeSettings, checked by it
) -> Rig:
    """Run a client against a scripted exchange; `script` gets each connection and its number."""
    rigs: list[Rig] = []
    connections = 0

    async def handle(websocket: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await script(websocket, connections)

    async def main() -> None:
        async with serve(handle, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            rig = Rig(f"ws://127.0.0.1:{port}/ws/api/v2", **settings)
            rigs.append(rig)
            await while_running(rig, lambda: steps(rig))

    asyncio.run(main())
    return rigs[0]


def test_every_trade_of_the_channels_arrives_once_and_in_order() -> None:
    recording = generate_trades(seed=3, count=3_000)
    expected = [(trade["instrument_name"], trade["trade_seq"]) for trade in recording.trades]

    async def main() -> None:
        async with running_simulator(recording, frame_trades=37) as simulator:
            rig = Rig(simulator.websocket_url, [OPTIONS, FUTURES])

            async def steps() -> None:
                found = await rig.receive_trades(len(expected))
                for instrument in recording.instruments:
                    assert [pair for pair in found if pair[0] == instrument] == [
                        pair for pair in expected if pair[0] == instrument
                    ]
                assert len(found) == len(expected)
                assert rig.health.not_ready() is None
                assert not rig.health.problems()

            await while_running(rig, steps)

    asyncio.run(main())


def test_receipts_say_that_they_are_simulated_and_from_the_stream() -> None:
    async def main() -> None:
        async with running_simulator(generate_trades(seed=3, count=50)) as simulator:
            rig = Rig(simulator.websocket_url)

            async def steps() -> None:
                receipt = await rig.receive()
                assert receipt.simulated
                assert receipt.source == "stream"

            await while_running(rig, steps)

    asyncio.run(main())


def test_an_unknown_channel_is_an_error_that_names_it() -> None:
    unknown = "trades.option.XXX.100ms"

    async def main() -> None:
        async with running_simulator(generate_trades(seed=3, count=50)) as simulator:
            rig = Rig(simulator.websocket_url, [OPTIONS, unknown], subscribe_attempts=1)
            with pytest.raises(ChannelRefusedError, match=unknown):
                await rig.client.run()

    asyncio.run(main())


def test_a_full_hand_over_stops_the_reading_and_loses_nothing() -> None:
    recording = generate_trades(seed=3, count=4_000, instruments=["BTC-PERPETUAL"])

    async def main() -> None:
        async with running_simulator(recording, frame_trades=10) as simulator:
            rig = Rig(simulator.websocket_url, [FUTURES], limit=8_000)

            async def steps() -> None:
                found: list[tuple[str, int]] = []
                while len(found) < 4_000:
                    assert len(rig.handover) <= 8_000
                    found += await rig.receive_trades(1)
                assert [seq for _, seq in found] == list(range(1, 4_001))

            await while_running(rig, steps)

    asyncio.run(main())


def test_whatever_ends_a_session_the_next_one_is_opened() -> None:
    async def script(websocket: ServerConnection, number: int) -> None:
        if number == 1:
            websocket.transport.abort()  # before the greeting
            return
        await greet(websocket)
        await websocket.send(notification(number))
        if number == 2:
            websocket.transport.abort()
        elif number == 3:
            await websocket.close(4000, "heartbeat close")
        elif number == 4:
            await websocket.send("x" * 100_000)  # more than is taken
        elif number == 5:
            error = {"code": 10028, "message": "too_many_requests"}
            await websocket.send(json.dumps({"jsonrpc": "2.0", "error": error}))
        await websocket.wait_closed()

    async def steps(rig: Rig) -> None:
        found = await rig.receive_trades(4)
        assert [seq for _, seq in found] == [2, 3, 4, 5]

    rig = run_against(script, steps, max_frame_bytes=65_536)
    assert rig.connects == 5


def test_a_later_refusal_is_no_reason_to_end() -> None:
    reconnected = asyncio.Event()

    async def script(websocket: ServerConnection, number: int) -> None:
        if number == 1:
            await greet(websocket)
            await websocket.send(notification(1))
            await websocket.close()
            return
        for _ in range(4):  # greeting, heartbeat, two subscriptions that are not acknowledged
            request = json.loads(await websocket.recv())
            await websocket.send(answer_to(request, []))
        reconnected.set()
        await websocket.wait_closed()

    async def steps(rig: Rig) -> None:
        await rig.receive_trades(1)
        await asyncio.wait_for(reconnected.wait(), WAIT_S)
        assert OPTIONS in (rig.health.not_ready() or "")

    run_against(script, steps, subscribe_attempts=1)


def test_an_undecodable_frame_is_handed_over_with_its_bytes() -> None:
    async def script(websocket: ServerConnection, number: int) -> None:
        del number
        await greet(websocket)
        await websocket.send("{broken")
        await websocket.send(b"\x00\xff")
        await websocket.send(notification(7))
        await websocket.wait_closed()

    async def steps(rig: Rig) -> None:
        for expected in (b"{broken", b"\x00\xff"):
            content = (await rig.receive()).content
            assert isinstance(content, BadFrame)
            assert content.frame == expected
        assert await rig.receive_trades(1) == [("BTC-27MAR26-100000-C", 7)]

    run_against(script, steps)


@pytest.mark.parametrize(
    "url",
    ["ws://127.0.0.1:9/ws/api/v2", "ws://no-such-host.invalid/ws/api/v2", f"ws://{'x' * 70}/"],
    ids=["refused", "no such name", "impossible name"],
)
def test_an_exchange_that_cannot_be_reached_is_tried_again(url: str) -> None:
    failures: list[str | None] = []

    def jitter() -> float:
        failures.append(rig.health.not_ready())
        if len(failures) >= 3:
            rig.stop.set()
        return 1.0

    rig = Rig(url, jitter=jitter)
    asyncio.run(rig.client.run())
    assert len(failures) >= 3
    assert url in (failures[-1] or "")


def test_a_stop_ends_an_attempt_that_is_under_way() -> None:
    async def main() -> None:
        with socket.socket() as silent:  # accepts connections, and never speaks
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            silent.settimeout(0)
            address = silent.getsockname()
            rig = Rig(f"ws://127.0.0.1:{address[1]}/", connect_timeout_s=10 * WAIT_S)

            async def steps() -> None:
                loop = asyncio.get_running_loop()
                connection, _ = await loop.sock_accept(silent)
                with connection:
                    rig.stop.set()
                    while await loop.sock_recv(connection, 10_000):
                        pass  # until the client hangs up

            await asyncio.wait_for(while_running(rig, steps), WAIT_S)

    asyncio.run(main())


def test_waits_double_up_to_their_bound_and_begin_anew() -> None:
    backoff = Backoff(1.0, 60.0, lambda: 0.5)
    assert [backoff.next_wait() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.next_wait(at_least_s=10) == 40
    backoff.reset()
    assert backoff.next_wait() == 0.5
    for _ in range(2_000):
        backoff.next_wait()
    assert backoff.next_wait() == 30


def _receipt(frame_bytes: int, seq: int = 1) -> Receipt:
    """Of one trade, in a frame of some length."""
    frame = notification(seq).encode()
    batch = decode_frame(frame)
    assert isinstance(batch, TradeBatch)
    return Receipt(batch, 1, frame=frame.ljust(frame_bytes))


def test_a_hand_over_is_bounded_by_bytes_and_takes_a_large_receipt_when_empty() -> None:
    handover = HandOver(10_000)
    assert handover.try_put(_receipt(50_000))
    assert not handover.try_put(_receipt(1_000))
    assert handover.get(0) is not None
    assert handover.try_put(_receipt(9_000))
    assert handover.try_put(_receipt(1_000))
    assert not handover.try_put(_receipt(500))
    assert handover.try_put(Inquiry(lambda _: None))
    assert len(handover) == 10_000


def test_beyond_a_few_trades_only_frames_are_kept_and_come_out_the_same() -> None:
    handover = HandOver(100_000, decoded=2)
    receipts = [_receipt(1_000, seq) for seq in range(1, 6)]
    for receipt in receipts:
        assert handover.try_put(receipt)
    taken = [handover.get(0) for _ in receipts]
    assert taken == receipts
    assert [got is put for got, put in zip(taken, receipts, strict=True)] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_trades_without_a_frame_wait_outside_while_few_may_be_kept_decoded() -> None:
    handover = HandOver(100_000, decoded=2)
    page = Receipt(_receipt(1_000).content, 1, "backfill")
    assert handover.try_put(page)
    assert handover.try_put(page)
    assert not handover.try_put(page)
    assert handover.try_put(_receipt(1_000))  # packed
    assert handover.try_put(Receipt(BadFrame(b"{", ValueError()), 1))
    assert handover.get(0) is page
    assert handover.try_put(page)


def test_a_closed_hand_over_is_finished_when_it_is_empty() -> None:
    handover = HandOver(10)
    handover.try_put(_receipt(1))
    handover.close()
    states = [handover.finished]
    assert handover.get(WAIT_S) is not None
    states.append(handover.finished)
    assert states == [False, True]
    assert handover.get(WAIT_S) is None


def test_a_bad_frame_weighs_what_it_holds() -> None:
    bad = Receipt(BadFrame(b"x" * 25_600, ValueError()), 1)
    handover = HandOver(bad.weight)
    assert handover.try_put(bad)
    assert not handover.try_put(bad)
