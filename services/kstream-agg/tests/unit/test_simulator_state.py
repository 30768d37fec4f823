"""A simulator that is started again goes on: no number twice, none left out."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from websockets.asyncio.client import connect

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import SettingsError
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.state import SimulatorState
from kstream_agg.deribit.simulator import running_simulator, simulator_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from websockets.asyncio.client import ClientConnection

RECORDING = generate_trades(seed=5, count=200, instruments=["BTC-PERPETUAL"])
START_MS = 1_790_000_000_000


async def call(client: ClientConnection, method: str, **params: object) -> Any:  # noqa: ANN401 - JSON
    await client.send(json.dumps({"id": 1, "method": method, "params": params}))
    while "id" not in (answer := json.loads(await client.recv())):
        pass
    return answer["result"]


async def play(state: Path, clock: ManualClock, *, loop_s: float) -> list[dict[str, Any]]:
    """All that a subscriber of one start gets while the loop plays for some seconds."""
    async with (
        running_simulator(
            RECORDING, clock=clock, state=state, loop=20, shift_to_now=True
        ) as simulator,
        connect(simulator.websocket_url) as client,
    ):
        before = simulator.exchange.published
        await call(client, "public/subscribe", channels=["trades.BTC-PERPETUAL.100ms"])
        await simulator.played()
        clock.advance(loop_s)
        expected = max(len(RECORDING.trades), before) - before + round(loop_s * 20)
        trades: list[dict[str, Any]] = []
        while len(trades) < expected:
            trades += json.loads(await client.recv())["params"]["data"]
        return trades


def seqs(trades: list[dict[str, Any]]) -> list[int]:
    return [trade["trade_seq"] for trade in trades]


def test_after_a_clean_stop_the_loop_goes_on(tmp_path: Path) -> None:
    clock = ManualClock(START_MS)
    state = tmp_path / "state.json"
    first = asyncio.run(play(state, clock, loop_s=5))
    assert seqs(first) == list(range(1, 301))
    clock.advance(3600)
    second = asyncio.run(play(state, clock, loop_s=5))
    assert seqs(second) == list(range(301, 401))
    assert second[0]["timestamp"] == START_MS + 3_605_050
    assert int(second[0]["trade_id"]) == int(first[-1]["trade_id"]) + 1


def test_after_a_clean_stop_the_history_still_knows_what_the_loop_played(tmp_path: Path) -> None:
    clock = ManualClock(START_MS)
    state = tmp_path / "state.json"
    first = asyncio.run(play(state, clock, loop_s=5))

    async def again() -> list[dict[str, Any]]:
        async with (
            running_simulator(
                RECORDING, clock=clock, state=state, loop=20, shift_to_now=True
            ) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            answer = await call(
                client,
                "public/get_last_trades_by_instrument",
                instrument_name="BTC-PERPETUAL",
                count=1000,
            )
            trades: list[dict[str, Any]] = answer["trades"]
            return trades

    known = asyncio.run(again())
    assert seqs(known) == seqs(first)
    assert [trade["price"] for trade in known] == [trade["price"] for trade in first]
    assert abs(known[-1]["timestamp"] - first[-1]["timestamp"]) <= 100


def test_after_a_crash_it_is_as_if_it_had_run_on(tmp_path: Path) -> None:
    clock = ManualClock(START_MS)
    state = tmp_path / "state.json"

    async def crash() -> None:
        async with running_simulator(
            RECORDING, clock=clock, state=state, loop=20, shift_to_now=True
        ) as simulator:
            async with connect(simulator.websocket_url) as client:
                await call(client, "public/subscribe", channels=["trades.BTC-PERPETUAL.100ms"])
                await simulator.played()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(crash())
    clock.advance(10)

    async def again() -> None:
        async with (
            running_simulator(
                RECORDING, clock=clock, state=state, loop=20, shift_to_now=True
            ) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            answer = await call(
                client,
                "public/get_last_trades_by_instrument",
                instrument_name="BTC-PERPETUAL",
                count=1000,
            )
            assert seqs(answer["trades"]) == list(range(1, 401))
            assert answer["trades"][199]["timestamp"] == START_MS
            assert answer["trades"][-1]["timestamp"] == START_MS + 10_000

    asyncio.run(again())
    assert seqs(asyncio.run(play(state, clock, loop_s=1))) == list(range(401, 421))


def test_a_recording_played_once_is_not_played_again(tmp_path: Path) -> None:
    state = tmp_path / "state.json"

    async def once() -> int:
        async with (
            running_simulator(RECORDING, state=state) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            before = simulator.exchange.published
            await call(client, "public/subscribe", channels=["trades.BTC-PERPETUAL.100ms"])
            await simulator.played()
            assert simulator.exchange.published == len(RECORDING.trades)
            return before

    assert asyncio.run(once()) == 0
    assert asyncio.run(once()) == len(RECORDING.trades)


def test_the_state_of_another_recording_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    other = SimulatorState("other.csv.gz", 7, START_MS, 0, START_MS, 20)
    state.write_bytes(msgspec.json.encode(other))
    with (
        pytest.raises(SettingsError, match=r"7 trades of 'other\.csv\.gz'"),
        simulator_in_thread(RECORDING, state=state),
    ):
        pass


def test_a_state_that_cannot_be_read(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text("{}")
    with (
        pytest.raises(SettingsError, match="cannot be read"),
        simulator_in_thread(RECORDING, state=state),
    ):
        pass


def test_a_state_that_cannot_be_written(tmp_path: Path) -> None:
    state = tmp_path / "absent" / "state.json"
    with (
        pytest.raises(SettingsError, match="cannot be written: its folder"),
        simulator_in_thread(RECORDING, state=state),
    ):
        pass
    blocked = tmp_path / "state.json"
    (tmp_path / "state.json.new").mkdir()

    async def scenario() -> None:
        async with (
            running_simulator(RECORDING, state=blocked) as simulator,
            connect(simulator.websocket_url) as client,
        ):
            await call(client, "public/subscribe", channels=["trades.BTC-PERPETUAL.100ms"])
            await simulator.played()

    with pytest.raises(SettingsError, match="cannot be written"):
        asyncio.run(scenario())
