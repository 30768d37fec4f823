"""The simulated exchange's protocol on one connection, without I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.core.clock import ManualClock
from kstream_agg.deribit.simulation.exchange import Exchange
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.rpc import Moment
from kstream_agg.deribit.simulation.session import Close, SimulatedSession

if TYPE_CHECKING:
    from kstream_agg.deribit.recording import Recording

OPTION, PERP = "BTC-27MAR26-60000-C", "BTC-PERPETUAL"
OPTIONS, FUTURES = "trades.option.BTC.100ms", "trades.future.BTC.100ms"


class Client:
    """A session with a clock that stands still, and what a client sees of it."""

    def __init__(self, recording: Recording | None = None, *, frame_trades: int = 100) -> None:
        recording = recording or generate_trades(seed=1, count=50, instruments=[OPTION, PERP])
        self.trades = recording.trades
        self.clock = ManualClock(1_790_133_842_384)
        self.exchange = Exchange(recording.trades)
        self.session = SimulatedSession(
            self.exchange, self.now(), seed=1, frame_trades=frame_trades
        )

    def now(self) -> Moment:
        return Moment.of(self.clock)

    def send(self, text: str | bytes) -> dict[str, Any]:
        output = self.session.handle(text, self.now())
        assert output.close is None
        (frame,) = output.frames
        answer: dict[str, Any] = json.loads(frame)
        return answer

    def call(self, method: str, **params: object) -> dict[str, Any]:
        request = {"jsonrpc": "2.0", "id": 5, "method": method, "params": params}
        answer = self.send(json.dumps(request))
        assert answer["id"] == 5
        return answer

    def publish(self, count: int) -> list[dict[str, Any]]:
        start = self.exchange.published
        happened = self.exchange.publish(self.trades[start : start + count])
        return [json.loads(frame) for frame in self.session.publish(happened, self.now())]

    def after(self, seconds: float) -> tuple[list[dict[str, Any]], Close | None]:
        self.clock.advance(seconds)
        output = self.session.poll(self.now())
        return [json.loads(frame) for frame in output.frames], output.close


def test_envelope() -> None:
    answer = Client().call("public/hello", client_name="x", client_version="1")
    assert answer["jsonrpc"] == "2.0"
    assert answer["result"]["version"].startswith("simulator-")
    assert answer["usIn"] == 1_790_133_842_384_000
    assert answer["usDiff"] == answer["usOut"] - answer["usIn"]
    assert answer["testnet"] is True


def test_a_request_without_id_is_answered_without_id() -> None:
    answer = Client().send('{"jsonrpc":"2.0","method":"public/get_time","params":{}}')
    assert answer["result"] == 1_790_133_842_384
    assert "id" not in answer


@pytest.mark.parametrize("text", ["{", "[]", "", b"\xff\xfe"])
def test_invalid_json(text: str | bytes) -> None:
    answer = Client().send(text)
    assert answer["error"] == {"code": 11050, "message": "bad_request", "data": "invalid json"}
    assert "id" not in answer


def test_a_frame_over_32_kb() -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "public/test", "params": {"x": "y" * 40_000}}
    answer = Client().send(json.dumps(request))
    assert answer["error"] == {"code": -32600, "message": "request entity too large"}
    assert "id" not in answer


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("public/nothing", {}, -32601),
        ("private/subscribe", {"channels": [OPTIONS]}, 13009),
        ("public/subscribe", {}, -32602),
        ("public/subscribe", {"channels": [1]}, -32602),
        ("public/test", {"expected_result": "exception"}, 11029),
        ("public/set_heartbeat", {"interval": 9}, -32602),
        ("public/set_heartbeat", {}, -32602),
    ],
)
def test_refused_calls(method: str, params: dict[str, Any], code: int) -> None:
    assert Client().call(method, **params)["error"]["code"] == code


def test_requests_of_a_wrong_shape() -> None:
    client = Client()
    assert client.send('{"id":1}')["error"]["code"] == -32600
    answer = client.send('{"id":1,"method":"public/test","params":[]}')
    assert (answer["id"], answer["error"]["code"]) == (1, -32602)


def test_unknown_channels_are_left_out() -> None:
    unknown = ["trades.option.XXX.100ms", "trades.option.BTC.1s", "trades.BTC-1JAN30.100ms", "x"]
    client = Client()
    answer = client.call("public/subscribe", channels=[*unknown, OPTIONS, FUTURES])
    assert set(answer["result"]) == {OPTIONS, FUTURES}
    assert client.call("public/subscribe", channels=unknown)["result"] == []


def test_acknowledged_channels_come_in_another_order() -> None:
    asked = [
        f"trades.{kind}.{currency}.{interval}"
        for kind in ("option", "future", "spot", "combo", "any")
        for currency in ("BTC", "any")
        for interval in ("100ms", "agg2")
    ]
    result = Client().call("public/subscribe", channels=asked)["result"]
    assert sorted(result) == sorted(asked)
    assert result != asked
    assert result == Client().call("public/subscribe", channels=asked)["result"]


def test_a_raw_channel_fails_the_whole_call() -> None:
    client = Client()
    answer = client.call("public/subscribe", channels=[OPTIONS, "trades.future.BTC.raw"])
    assert answer["error"] == {
        "code": 13778,
        "message": "raw_subscriptions_not_available_for_unauthorized",
    }
    assert not client.session.subscribed
    assert client.publish(10) == []


def test_trades_come_on_their_channel_as_recorded() -> None:
    client = Client()
    client.call("public/subscribe", channels=[OPTIONS])
    (frame,) = client.publish(50)
    assert frame["method"] == "subscription"
    assert frame["params"]["channel"] == OPTIONS
    assert "id" not in frame
    assert frame["params"]["data"] == [
        trade for trade in client.trades if trade["instrument_name"] == OPTION
    ]


def test_one_trade_comes_on_every_channel_that_carries_it() -> None:
    client = Client()
    channels = {OPTIONS, "trades.option.any.100ms", f"trades.{OPTION}.100ms"}
    client.call("public/subscribe", channels=sorted(channels))
    frames = client.publish(50)
    assert {frame["params"]["channel"] for frame in frames} == channels
    assert all(frame["params"]["data"] == frames[0]["params"]["data"] for frame in frames)


def test_subscribing_again_is_acknowledged_and_changes_nothing() -> None:
    client = Client()
    for _ in range(2):
        assert client.call("public/subscribe", channels=[OPTIONS, OPTIONS])["result"] == [OPTIONS]
    assert len(client.publish(50)) == 1


def test_a_channel_subscribed_later_is_routed_too() -> None:
    client = Client()
    client.call("public/subscribe", channels=[OPTIONS])
    assert len(client.publish(25)) == 1
    client.call("public/subscribe", channels=[FUTURES])
    assert len(client.publish(25)) == 2


def test_unsubscribing() -> None:
    client = Client()
    client.call("public/subscribe", channels=[OPTIONS, FUTURES])
    answer = client.call("public/unsubscribe", channels=[FUTURES, "trades.spot.BTC.100ms"])
    assert answer["result"] == [FUTURES]
    assert {frame["params"]["channel"] for frame in client.publish(25)} == {OPTIONS}
    assert client.call("public/unsubscribe_all")["result"] == "ok"
    assert client.publish(25) == []


def test_a_notification_holds_a_bounded_number_of_trades() -> None:
    client = Client(frame_trades=20)
    client.call("public/subscribe", channels=["trades.any.BTC.100ms"])
    frames = client.publish(50)
    assert [len(frame["params"]["data"]) for frame in frames] == [20, 20, 10]
    data = [trade for frame in frames for trade in frame["params"]["data"]]
    assert data == list(client.trades)


def test_agg2_gathers_a_second() -> None:
    client = Client()
    client.call("public/subscribe", channels=["trades.any.BTC.agg2"])
    assert client.publish(10) == []
    assert client.after(0.9) == ([], None)
    assert client.publish(10) == []
    ((frame,), close) = client.after(0.2)
    assert close is None
    assert frame["params"]["data"] == list(client.trades[:20])


def test_heartbeat_cadence() -> None:
    client = Client()
    assert client.call("public/set_heartbeat", interval=10)["result"] == "ok"
    assert client.after(9.9) == ([], None)
    idle, _ = client.after(0.1)
    assert idle == [{"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}}]
    asked, _ = client.after(2.1)
    test_request = {"params": {"type": "test_request"}, "method": "heartbeat", "jsonrpc": "2.0"}
    assert asked == [test_request]
    assert "version" in client.call("public/test")["result"]
    assert client.after(9.9) == ([], None)
    idle_again, _ = client.after(0.2)
    assert idle_again[0]["params"] == {"type": "heartbeat"}
    assert client.after(0.6) == ([test_request], None)


def test_a_busy_connection_gets_test_requests_only() -> None:
    client = Client()
    client.call("public/subscribe", channels=["trades.any.BTC.100ms"])
    client.call("public/set_heartbeat", interval=10)
    client.clock.advance(9)
    assert len(client.publish(1)) == 1
    assert client.after(2) == ([], None)
    frames, _ = client.after(1.1)
    assert [frame["params"]["type"] for frame in frames] == ["test_request"]


def test_an_unanswered_test_request_ends_the_connection() -> None:
    client = Client()
    client.call("public/subscribe", channels=[OPTIONS])
    client.call("public/set_heartbeat", interval=10)
    client.after(12.1)
    client.call("public/get_time")  # another call is no answer
    assert client.after(9.9) == ([], None)
    assert client.after(0.1) == ([], Close(4000, "heartbeat close"))


def test_heartbeat_can_be_switched_off() -> None:
    client = Client()
    client.call("public/subscribe", channels=[OPTIONS])
    client.call("public/set_heartbeat", interval=10)
    assert client.call("public/disable_heartbeat")["result"] == "ok"
    assert client.after(600) == ([], None)


def test_an_idle_connection_is_cut() -> None:
    client = Client()
    assert client.after(60.4) == ([], None)
    assert client.after(0.2) == ([], Close(1006))


def test_one_quiet_subscription_keeps_a_connection_up() -> None:
    client = Client()
    client.call("public/subscribe", channels=[OPTIONS])
    assert client.after(600) == ([], None)
