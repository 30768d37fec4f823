"""The simulator as an adversary: each fault does what it says, the same for the same seed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kstream_agg.core.errors import SettingsError
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.link_faults import Cut, LinkFaults, Pause
from kstream_agg.deribit.simulation.rarities import with_rarities
from kstream_agg.deribit.simulation.scenario import Scenario, change_scenario, read_scenario
from kstream_agg.deribit.simulation.spelling import Spelling
from kstream_agg.deribit.simulator import running_simulator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kstream_agg.deribit.simulation.link_faults import Step
    from kstream_agg.deribit.simulator import SimulatorHandle

CHANNEL = "trades.future.BTC.100ms"
RECORDING = generate_trades(seed=1, count=300, instruments=["BTC-PERPETUAL"])
REPLY = b'{"jsonrpc":"2.0","id":1,"result":"ok"}'


def frame(*seqs: int, channel: str = CHANNEL) -> bytes:
    params = {"channel": channel, "data": [{"trade_seq": seq} for seq in seqs]}
    message = {"jsonrpc": "2.0", "method": "subscription", "params": params}
    return json.dumps(message, separators=(",", ":")).encode()


def faults(seed: int = 1, *, may_cut: bool = True, **fields: Any) -> LinkFaults:  # noqa: ANN401 - fields of Scenario
    scenario = Scenario(seed=seed, **fields)
    return LinkFaults(lambda: scenario, random.Random(seed), lambda: may_cut)  # noqa: S311 - no secrets


def seqs(steps: Sequence[Step]) -> list[list[int]]:
    frames = [json.loads(step) for step in steps if isinstance(step, bytes)]
    return [[trade["trade_seq"] for trade in found["params"]["data"]] for found in frames]


def test_dropped_repeated_and_delayed_frames() -> None:
    assert faults(drop=1).apply([frame(1), frame(2)]) == []
    assert seqs(faults(repeat=1).apply([frame(1)])) == [[1], [1]]
    assert faults(delay=1, delay_s=0.5).apply([frame(1)]) == [Pause(0.5), frame(1)]


def test_answers_are_not_touched() -> None:
    assert faults(drop=1, merge=1, reorder=1).apply([REPLY]) == [REPLY]


def test_split_and_merged_frames_hold_the_same_trades() -> None:
    assert seqs(faults(split=1).apply([frame(1, 2, 3)])) == [[1], [2, 3]]
    assert seqs(faults(split=1).apply([frame(1)])) == [[1]]
    assert seqs(faults(merge=1).apply([frame(1, 2), frame(3)])) == [[1, 2, 3]]
    other = frame(9, channel="trades.future.ETH.100ms")
    assert seqs(faults(merge=1).apply([frame(1), other])) == [[1], [9]]


def test_what_is_held_back_comes_later() -> None:
    held = faults(reorder=1)
    assert held.apply([frame(1), frame(2)]) == []
    assert seqs(held.flush()) == [[1], [2]]
    assert held.flush() == []


def test_the_same_seed_does_the_same() -> None:
    frames = [frame(seq) for seq in range(200)]
    first, again, other = (
        faults(seed, drop=0.1, repeat=0.1, reorder=0.1, disconnect_every=100).apply(frames)
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert isinstance(first[-1], Cut)


def test_a_connection_is_kept_when_enough_were_cut() -> None:
    steps = faults(disconnect_every=1, may_cut=False).apply([frame(seq) for seq in range(50)])
    assert len(steps) == 50


def test_spelling_changes_the_writing_and_not_the_numbers() -> None:
    trade = RECORDING.trades[0]
    scenario = Scenario(exponents=1, unknown_fields=1, unknown_values=1, late_liquidations=1)
    stream, later = Spelling(lambda: scenario).write(trade)
    assert b'"price":7.11005e+4' in stream
    assert later is not None
    found = json.loads(stream)
    for key in ("price", "amount", "index_price", "mark_price"):
        assert found[key] == trade[key]
    assert "unheard_of" in found
    assert found["direction"] == "zero"
    assert "liquidation" not in found
    assert json.loads(later)["liquidation"] == "T"
    assert Spelling(Scenario).write(trade) == (
        json.dumps(trade, separators=(",", ":")).encode(),
        None,
    )


def test_rarities_add_combos_blocks_and_decimal_strikes() -> None:
    options = generate_trades(seed=2, count=300)
    found = with_rarities(options, Scenario(combos=0.1, block_trades=0.1, decimal_strikes=0.1))
    again = with_rarities(options, Scenario(combos=0.1, block_trades=0.1, decimal_strikes=0.1))
    assert found == again
    parents = [trade for trade in found.trades if "legs" in trade]
    assert parents
    assert all(leg["trade_id"] == trade["trade_id"] for trade in parents for leg in trade["legs"])
    assert any("block_trade_id" in trade for trade in found.trades)
    assert any("0d625" in trade["instrument_name"] for trade in found.trades)
    identities = [(trade["instrument_name"], trade["trade_seq"]) for trade in found.trades]
    assert len(set(identities)) == len(identities)
    assert with_rarities(options, Scenario()) is options


def test_a_scenario_is_read_from_a_file_and_wrong_ones_are_told(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text('drop = 0.5\ndisconnect_kinds = ["silent"]\n', encoding="utf-8")
    assert read_scenario(file) == Scenario(drop=0.5, disconnect_kinds=("silent",))
    for text, told in (("drop = 2", "drop"), ("dropp = 1", "dropp"), ("drop =", "not TOML")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=told):
            read_scenario(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_scenario(tmp_path / "none.toml")


async def _call(simulator: SimulatorHandle, path: str) -> httpx2.Response:
    base = simulator.rest_url.removesuffix("/api/v2")
    async with httpx2.AsyncClient() as http:
        return await http.get(base + path)


def test_the_control_call_changes_the_scenario_and_cuts_connections() -> None:
    async def main() -> None:
        async with running_simulator(RECORDING) as simulator:
            shown = await _call(simulator, "/control?drop=0.25&disconnect_kinds=[%22silent%22]")
            assert shown.json()["drop"] == 0.25
            assert simulator.adversary.scenario.disconnect_kinds == ("silent",)
            wrong = await _call(simulator, "/control?drop=many")
            assert wrong.status_code == 400
            assert "drop" in wrong.json()["error"]
            async with connect(simulator.websocket_url) as websocket:
                await websocket.send('{"id":1,"method":"public/test","params":{}}')
                await websocket.recv()
                await _call(simulator, "/control?disconnect=clean")
                with pytest.raises(ConnectionClosed):
                    await websocket.recv()

    asyncio.run(main())


def test_handshakes_are_refused_and_calls_without_credits_end_the_session() -> None:
    async def main() -> None:
        scenario = Scenario(refuse_handshakes=1)
        async with running_simulator(RECORDING, scenario=scenario) as simulator:
            with pytest.raises(InvalidStatus) as refused:
                await connect(simulator.websocket_url)
            assert refused.value.response.status_code in {429, 503}
            simulator.adversary.change({"refuse_handshakes": 0, "too_many_requests": 1})
            async with connect(simulator.websocket_url) as websocket:
                await websocket.send('{"id":1,"method":"public/test","params":{}}')
                assert json.loads(await websocket.recv())["error"]["code"] == 10028
                with pytest.raises(ConnectionClosed):
                    await websocket.recv()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "statuses"),
    [("rest_limit", {429}), ("rest_fail", {200, 500, 502})],
)
def test_the_history_fails_in_its_ways(field: str, statuses: set[int]) -> None:
    async def main() -> None:
        scenario = change_scenario(Scenario(), {field: 1})
        async with running_simulator(RECORDING, scenario=scenario) as simulator:
            seen = set()
            for _ in range(20):
                try:
                    answer = await _call(simulator, "/api/v2/public/get_time")
                except httpx2.HTTPError:
                    continue
                seen.add(answer.status_code)
                assert "no" in answer.text
            assert seen == statuses

    asyncio.run(main())


def test_maintenance_is_announced_and_ends() -> None:
    async def main() -> None:
        scenario = Scenario(maintenance_after=1, maintenance_s=0.05)
        async with running_simulator(RECORDING, scenario=scenario) as simulator:
            async with connect(simulator.websocket_url) as websocket:
                channels = [CHANNEL, "platform_state"]
                call = {"id": 1, "method": "public/subscribe", "params": {"channels": channels}}
                await websocket.send(json.dumps(call))
                frames = []
                with contextlib.suppress(ConnectionClosed):
                    async for text in websocket:
                        frames.append(json.loads(text))  # noqa: PERF401 - kept when it ends badly
            assert frames[-1]["params"] == {
                "channel": "platform_state",
                "data": {"maintenance": True},
            }
            refused = []
            while True:
                try:
                    async with connect(simulator.websocket_url):
                        break
                except InvalidStatus as error:
                    refused.append(error.response.status_code)
            assert set(refused) <= {503}

    asyncio.run(main())
