"""The session's protocol, frame by frame and second by second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from kstream_agg.core.errors import ChannelRefusedError
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
from kstream_agg.deribit.login import Login
from kstream_agg.deribit.session import Session, SessionTimes
from kstream_agg.deribit.subscription import MAX_CHANNEL_BYTES, MAX_CHANNELS, split_channels

OPTIONS = "trades.option.BTC.100ms"
DATA = Path(os.environ.get("KSTREAM_TEST_DATA") or Path(__file__).parents[5] / "shared" / "data")
RECORDED = DATA / "messages.jsonl"
RAW = "trades.option.BTC.raw"
FUTURES = "trades.future.BTC.100ms"
TEST_REQUEST = b'{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}'
TRADE = {
    "timestamp": 1,
    "price": 1,
    "amount": 2.5,
    "direction": "buy",
    "instrument_name": "BTC-PERPETUAL",
    "trade_seq": 1,
    "trade_id": "1",
    "tick_direction": 1,
}


class Exchange:
    """The other side of a session under test: reads its requests, writes the answers."""

    def __init__(self, *channels: str, attempts: int | None = 3) -> None:
        self.now = 100.0
        self.session = Session(channels, attempts=attempts)
        self.requests: list[dict[str, Any]] = []
        self.events: list[Event] = []
        self._take(self.session.start(self.now))

    def _take(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Send):
                self.requests.append(json.loads(event.text))
            else:
                self.events.append(event)
        return events

    def send(self, message: dict[str, Any] | bytes) -> list[Event]:
        frame = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self._take(self.session.receive(frame, self.now))

    def wait(self, seconds: float) -> list[Event]:
        self.now += seconds
        return self._take(self.session.poll(self.now))

    def take_request(self, method: str) -> dict[str, Any]:
        request = self.requests.pop(0)
        assert request["jsonrpc"] == "2.0"
        assert request["method"] == method
        return request

    def answer(self, request: dict[str, Any], result: object) -> list[Event]:
        return self.send({"jsonrpc": "2.0", "id": request["id"], "result": result, "usDiff": 9})

    def refuse(self, request: dict[str, Any] | None, code: int, text: str) -> list[Event]:
        message: dict[str, Any] = {"jsonrpc": "2.0", "error": {"code": code, "message": text}}
        if request is not None:
            message["id"] = request["id"]
        return self.send(message)

    def greet(self, version: str = "1.2.26") -> dict[str, Any]:
        """Answer up to the first subscription, and give that."""
        self.answer(self.take_request("public/hello"), {"version": version})
        heartbeat = self.take_request("public/set_heartbeat")
        assert heartbeat["params"] == {"interval": 10}
        self.answer(heartbeat, "ok")
        return self.take_request("public/subscribe")

    def pending(self) -> dict[str, Any]:
        return self.take_request("public/subscribe")


def notification(channel: str, *trades: object) -> dict[str, Any]:
    params = {"channel": channel, "data": list(trades)}
    return {"jsonrpc": "2.0", "method": "subscription", "params": params}


def test_it_greets_sets_the_heartbeat_and_subscribes_in_one_call() -> None:
    exchange = Exchange(OPTIONS, FUTURES)
    request = exchange.greet()
    assert request["params"] == {"channels": [OPTIONS, FUTURES]}
    exchange.answer(request, [FUTURES, OPTIONS])
    assert exchange.events == [Subscribed((OPTIONS, FUTURES))]
    assert exchange.session.ready
    assert not exchange.session.simulated


def test_a_simulator_is_known_by_its_greeting() -> None:
    exchange = Exchange(OPTIONS)
    exchange.greet("simulator-0.1.0")
    assert exchange.session.simulated


def test_a_refused_greeting_is_told_and_the_session_goes_on() -> None:
    exchange = Exchange(OPTIONS)
    exchange.refuse(exchange.take_request("public/hello"), -32601, "Method not found")
    assert isinstance(exchange.events[0], Notice)
    exchange.take_request("public/set_heartbeat")


def test_refused_heartbeats_end_the_session() -> None:
    exchange = Exchange(OPTIONS)
    exchange.answer(exchange.take_request("public/hello"), {"version": "1"})
    exchange.refuse(exchange.take_request("public/set_heartbeat"), -32602, "Invalid params")
    assert isinstance(exchange.events[-1], Lost)


def test_answers_may_come_in_any_order() -> None:
    channels = [
        f"trades.BTC-{day}JUN27-{strike}-C.100ms" for day in range(30) for strike in range(30)
    ]
    exchange = Exchange(*channels)
    first = exchange.greet()
    exchange.wait(0.4)
    second = exchange.pending()
    exchange.answer(second, second["params"]["channels"][::-1])
    assert not exchange.events
    exchange.answer(first, first["params"]["channels"])
    assert exchange.events == [Subscribed(tuple(channels))]


def test_calls_stay_below_three_a_second() -> None:
    channels = [f"trades.BTC-{number}JUN27-1-C.100ms" for number in range(MAX_CHANNELS + 1)]
    exchange = Exchange(*channels)
    exchange.greet()
    assert exchange.wait(0.2) == []
    assert len(exchange.wait(0.2)) == 1


def test_a_test_request_is_answered() -> None:
    exchange = Exchange(OPTIONS)
    exchange.greet()
    exchange.send(TEST_REQUEST)
    request = exchange.take_request("public/test")
    (event,) = exchange.answer(request, {"version": "1.2.26"})
    assert isinstance(event, Ignored)
    assert exchange.send({"method": "heartbeat", "params": {"type": "heartbeat"}}) == []


def test_three_missed_test_requests_mean_a_dead_connection() -> None:
    exchange = Exchange(OPTIONS)
    exchange.answer(exchange.greet(), [OPTIONS])
    for _ in range(5):  # a quiet market: a minute without a trade
        exchange.wait(10.7)
        exchange.send(TEST_REQUEST)
    assert not any(isinstance(event, Lost) for event in exchange.events)
    assert exchange.wait(34.9) == []
    (event,) = exchange.wait(0.2)
    assert isinstance(event, Lost)
    assert "three heartbeats are missing" in event.reason


def test_a_call_without_an_answer_ends_the_session() -> None:
    exchange = Exchange(OPTIONS)
    exchange.greet()
    for _ in range(3):
        exchange.wait(9.9)
        exchange.send(TEST_REQUEST)
    (event,) = exchange.wait(1.0)
    assert isinstance(event, Lost)
    assert "no answer to subscribe" in event.reason


def test_trades_are_routed_by_method_even_before_the_acknowledgement() -> None:
    exchange = Exchange(OPTIONS)
    exchange.greet()
    (event,) = exchange.send(notification(OPTIONS, TRADE))
    assert isinstance(event, Trades)
    assert event.batch.channel == OPTIONS
    assert [trade.trade_id for trade in event.batch.trades] == ["1"]


def test_trades_of_a_channel_nobody_asked_for_are_set_aside() -> None:
    exchange = Exchange(OPTIONS)
    exchange.greet()
    (event,) = exchange.send(notification("trades.spot.BTC.100ms", TRADE))
    assert isinstance(event, BadFrame)
    assert "not asked for" in str(event.error)


@pytest.mark.parametrize("frame", [b"{", b"\xff", b"[]", b""])
def test_an_undecodable_frame_is_kept_with_its_bytes_and_ends_nothing(frame: bytes) -> None:
    exchange = Exchange(OPTIONS)
    request = exchange.greet()
    (event,) = exchange.send(frame)
    assert isinstance(event, BadFrame)
    assert event.frame == frame
    exchange.answer(request, [OPTIONS])
    assert exchange.session.ready


@pytest.mark.parametrize(
    "message",
    [
        {
            "method": "subscription",
            "params": {"channel": "platform_state", "data": {"locked": True}},
        },
        {"method": "brand_new", "params": None},
        {"jsonrpc": "2.0"},
        {"id": 999, "result": "ok"},
        {"id": ["odd"], "result": "ok"},
    ],
)
def test_what_means_nothing_is_ignored(message: dict[str, Any]) -> None:
    exchange = Exchange(OPTIONS)
    exchange.greet()
    (event,) = exchange.send(message)
    assert isinstance(event, Ignored)


def test_omitted_channels_are_asked_for_again_and_then_refused_by_name() -> None:
    unknown = "trades.option.XXX.100ms"
    exchange = Exchange(OPTIONS, unknown)
    request = exchange.greet()
    for wait in (1.0, 2.0):
        exchange.answer(request, [OPTIONS] if OPTIONS in request["params"]["channels"] else [])
        assert exchange.events[-1] == ChannelsMissing((unknown,), "left out without an error", wait)
        assert exchange.wait(wait - 0.1) == []
        exchange.wait(0.2)
        request = exchange.pending()
        assert request["params"]["channels"] == [unknown]
    exchange.answer(request, [])
    refused = exchange.events[-1]
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, ChannelRefusedError)
    assert unknown in str(refused.error)
    assert OPTIONS not in str(refused.error)
    assert refused.error.remedy is not None
    assert "trades.{kind}.{currency}" in refused.error.remedy


def test_a_channel_that_comes_at_the_second_attempt_is_fine() -> None:
    exchange = Exchange(OPTIONS)
    exchange.answer(exchange.greet(), [])
    exchange.wait(1.1)
    exchange.answer(exchange.pending(), [OPTIONS])
    assert exchange.events[-1] == Subscribed((OPTIONS,))


def test_after_a_first_success_missing_channels_are_asked_for_without_end() -> None:
    exchange = Exchange(OPTIONS, attempts=None)
    request = exchange.greet()
    waits = []
    for _ in range(10):
        exchange.answer(request, [])
        missing = exchange.events[-1]
        assert isinstance(missing, ChannelsMissing)
        waits.append(missing.retry_s)
        for _ in range(10):
            exchange.send(TEST_REQUEST)
            exchange.wait(missing.retry_s / 10)
        exchange.wait(0.4)
        exchange.requests = [r for r in exchange.requests if r["method"] != "public/test"]
        request = exchange.pending()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_a_raw_channel_goes_into_a_call_of_its_own_and_its_refusal_names_the_remedy() -> None:
    raw = "trades.option.BTC.raw"
    exchange = Exchange(raw, FUTURES)
    request = exchange.greet()
    assert request["params"]["channels"] == [FUTURES]
    exchange.answer(request, [FUTURES])
    exchange.wait(0.4)
    request = exchange.pending()
    assert request["params"]["channels"] == [raw]
    exchange.refuse(request, 13778, "raw_subscriptions_not_available_for_unauthorized")
    refused = exchange.events[-1]
    assert isinstance(refused, Refused)
    assert raw in str(refused.error)
    assert "13778" in str(refused.error)
    assert refused.error.remedy is not None
    assert "'trades.option.BTC.100ms'" in refused.error.remedy


def test_a_passing_error_does_not_count_as_a_refusal() -> None:
    exchange = Exchange(OPTIONS, attempts=1)
    request = exchange.greet()
    for _ in range(4):
        exchange.refuse(request, 13028, "temporarily_unavailable")
        missing = exchange.events[-1]
        assert isinstance(missing, ChannelsMissing)
        exchange.wait(missing.retry_s + 0.01)
        request = exchange.pending()
    exchange.answer(request, [OPTIONS])
    assert exchange.session.ready


@pytest.mark.parametrize("named", [True, False])
def test_too_many_requests_ends_the_session_and_waits(named: bool) -> None:  # noqa: FBT001 - a parametrised case
    exchange = Exchange(OPTIONS)
    request = exchange.greet()
    (event,) = exchange.refuse(request if named else None, 10028, "too_many_requests")
    assert isinstance(event, Lost)
    assert event.wait_s >= 5
    assert "too_many_requests" in event.reason


def test_a_call_that_is_too_large_is_sent_again_in_smaller_ones() -> None:
    channels = [f"trades.BTC-{number}JUN27-1-C.100ms" for number in range(400)]
    exchange = Exchange(*channels)
    request = exchange.greet()
    assert len(request["params"]["channels"]) == 400
    exchange.now += 1
    exchange.refuse(None, -32600, "request entity too large")
    assert isinstance(exchange.events[0], Notice)
    asked: list[str] = []
    while exchange.requests or exchange.wait(0.4):
        request = exchange.pending()
        asked += request["params"]["channels"]
        assert len(request["params"]["channels"]) < 400
        exchange.answer(request, request["params"]["channels"])
    assert sorted(asked) == sorted([*channels, "platform_state"])
    assert exchange.session.ready


@pytest.mark.parametrize(
    "error",
    [
        {"code": 11050, "data": "invalid json", "message": "bad_request"},
        {"code": 11050, "data": {"reason": "x", "param": "y"}, "message": "bad_request"},
        {"message": "no code"},
        "only a text",
    ],
)
def test_an_error_without_id_is_told_and_ends_nothing(error: object) -> None:
    exchange = Exchange(OPTIONS)
    request = exchange.greet()
    (event,) = exchange.send({"jsonrpc": "2.0", "error": error})
    assert isinstance(event, Notice)
    exchange.answer(request, [OPTIONS])
    assert exchange.session.ready


def test_an_odd_acknowledgement_counts_as_none() -> None:
    exchange = Exchange(OPTIONS)
    exchange.answer(exchange.greet(), {"channels": [OPTIONS]})
    assert isinstance(exchange.events[-1], ChannelsMissing)


def test_calls_are_split_by_bytes_and_by_number() -> None:
    long = [f"trades.BTC-{'X' * 200}-{number}.100ms" for number in range(300)]
    short = [f"trades.B-{number}.100ms" for number in range(1200)]
    for channels in (long, short, [*long, *short]):
        batches = split_channels(channels)
        assert [name for batch in batches for name in batch] == channels
        for batch in batches:
            assert len(batch) <= MAX_CHANNELS
            assert len(json.dumps({"channels": batch}, separators=(",", ":"))) < 32_000
            assert sum(len(name) + 3 for name in batch) <= MAX_CHANNEL_BYTES


def test_the_silence_it_bears_follows_the_interval() -> None:
    assert SessionTimes(heartbeat_interval=10).silence == 35
    assert SessionTimes(heartbeat_interval=30).silence == 105


SECRET = "hush-hush"


def exchange_with_login(attempts: int | None = 3) -> Exchange:
    exchange = Exchange.__new__(Exchange)
    exchange.now = 100.0
    login = Login("me", SecretStr(SECRET))
    exchange.session = Session([RAW], attempts=attempts, login=login)
    exchange.requests, exchange.events = [], []
    exchange._take(exchange.session.start(exchange.now))
    exchange.answer(exchange.take_request("public/hello"), {"version": "1"})
    return exchange


def test_it_logs_in_before_it_subscribes_and_renews_the_login_in_time() -> None:
    exchange = exchange_with_login()
    login = exchange.take_request("public/auth")
    assert login["params"] == {
        "grant_type": "client_credentials", "client_id": "me", "client_secret": SECRET,
    }  # fmt: skip
    exchange.answer(login, {"access_token": "a", "refresh_token": "r1", "expires_in": 900})
    exchange.answer(exchange.take_request("public/set_heartbeat"), "ok")
    exchange.answer(exchange.pending(), [RAW])
    assert exchange.session.ready
    exchange.requests.clear()
    for _ in range(24):
        exchange.now += 29.9
        exchange.send(TEST_REQUEST)
        exchange.requests.clear()
        assert not exchange.wait(0)
    exchange.now += 5
    exchange.send(TEST_REQUEST)
    exchange.requests.clear()
    exchange.wait(0)
    renewal = exchange.take_request("public/auth")
    assert renewal["params"] == {"grant_type": "refresh_token", "refresh_token": "r1"}
    # A token that is not taken is no end: the credentials are.
    exchange.refuse(renewal, 13009, "unauthorized")
    again = exchange.take_request("public/auth")
    assert again["params"]["grant_type"] == "client_credentials"
    exchange.answer(again, {"refresh_token": "r2", "expires_in": 900})
    assert not exchange.requests


def test_a_wrong_login_is_told_without_its_secret() -> None:
    exchange = exchange_with_login()
    exchange.refuse(exchange.take_request("public/auth"), 13004, "invalid_credentials")
    (refused,) = exchange.events
    assert isinstance(refused, Refused)
    assert "'me'" in str(refused.error)
    assert SECRET not in f"{refused} {refused.error} {refused.error.remedy}"


@pytest.mark.parametrize(("attempts", "code"), [(None, 13004), (3, 11051)])
def test_a_login_that_fails_for_now_is_tried_again(attempts: int | None, code: int) -> None:
    exchange = exchange_with_login(attempts)
    exchange.refuse(exchange.take_request("public/auth"), code, "no")
    assert isinstance(exchange.events[-1], Lost)


def test_a_frame_to_be_sent_does_not_show_what_it_holds() -> None:
    assert SECRET not in repr(Send(SECRET))


def test_maintenance_is_told_and_locked_indices_are_not() -> None:
    exchange = Exchange(OPTIONS)
    exchange.answer(exchange.greet(), [OPTIONS])
    assert exchange.requests[-1]["params"] == {"channels": ["platform_state"]}
    exchange.events.clear()
    for data in ({"maintenance": True}, {"price_index": "sol_usdc", "locked": True}):
        params = {"channel": "platform_state", "data": data}
        exchange.send({"method": "subscription", "params": params})
    notice, ignored = exchange.events
    assert notice == Notice("maintenance of the exchange begins")
    assert isinstance(ignored, Ignored)


def _message() -> st.SearchStrategy[object]:
    """What an exchange might say, and what it should not."""
    scalar = st.none() | st.booleans() | st.integers(-10, 40_000) | st.text(max_size=5)
    names = st.sampled_from([OPTIONS, FUTURES, "trades.x.y.z", "platform_state", ""])
    results = st.one_of(
        scalar, st.lists(names | scalar, max_size=3), st.fixed_dictionaries({"version": scalar}),
        st.fixed_dictionaries({"refresh_token": scalar, "expires_in": scalar}),
    )  # fmt: skip
    codes = st.sampled_from([10028, 13778, -32600, 11051, 13004, 0]) | scalar
    errors = st.fixed_dictionaries({"code": codes}, optional={"message": scalar, "data": scalar})
    answers = st.fixed_dictionaries(
        {"id": st.integers(0, 12) | scalar}, optional={"result": results, "error": errors | scalar}
    )
    data = st.lists(st.just(TRADE) | scalar, max_size=3) | scalar
    params = st.fixed_dictionaries({}, optional={"channel": names, "data": data, "type": names})
    notifications = st.fixed_dictionaries(
        {"method": st.sampled_from(["subscription", "heartbeat", "x"])},
        optional={"params": params | scalar},
    )
    return st.one_of(answers, notifications, scalar, st.binary(max_size=20))


@given(
    st.lists(st.one_of(_message(), st.floats(0, 40)), max_size=40), st.sampled_from([None, 1, 3])
)
def test_whatever_the_exchange_says_the_session_stays_within_its_bounds(
    steps: list[object], attempts: int | None
) -> None:
    login = Login("me", SecretStr(SECRET))
    session = Session([OPTIONS, FUTURES], attempts=attempts, login=login)
    now = 0.0
    events = list(session.start(now))
    for step in steps:
        if isinstance(step, float):
            now += step
            new = session.poll(now)
        else:
            frame = step if isinstance(step, bytes) else json.dumps(step).encode()
            new = session.receive(frame, now)
        events += new
        for event in new:
            if isinstance(event, Trades):
                assert event.batch.channel in {OPTIONS, FUTURES}
            elif isinstance(event, Refused):
                assert attempts is not None
            elif isinstance(event, ChannelsMissing):
                assert event.retry_s > 0
                assert event.channels
            if not isinstance(event, Send):
                assert SECRET not in repr(event)
        if any(isinstance(event, Lost | Refused) for event in new):
            break
    sent = [json.loads(event.text) for event in events if isinstance(event, Send)]
    assert [request["id"] for request in sent] == list(range(1, len(sent) + 1))
    assert session.ready == (sum(isinstance(event, Subscribed) for event in events) > 0)


def recorded_messages() -> list[dict[str, Any]]:
    """The messages beside the checkout; where they are not, some of the same kinds."""
    if RECORDED.exists():
        return [json.loads(line)["message"] for line in RECORDED.read_text().splitlines()]
    perpetual = {
        "trade_seq": 20944815, "trade_id": "39355898", "timestamp": 1567296022565,
        "tick_direction": 2, "price": 9598.5, "instrument_name": "BTC-PERPETUAL",
        "index_price": 9600.8, "direction": "sell", "amount": 2000.0,
    }  # fmt: skip
    rare = {
        "contracts": 845.0, "starbase_match_id": 225046781992378368, "liquidation": "T",
        "starbase_timestamp": 1789344933994718924,
    }  # fmt: skip
    channel = "trades.BTC-PERPETUAL.100ms"
    return [
        {"jsonrpc": "2.0", "method": "subscription",
         "params": {"channel": channel, "data": [perpetual, perpetual | rare]}},
        {"params": {"type": "test_request"}, "method": "heartbeat", "jsonrpc": "2.0"},
        {"jsonrpc": "2.0", "id": 4, "result": [], "usDiff": 93, "testnet": False},
        {"jsonrpc": "2.0", "error": {"code": 11050, "data": "invalid json",
                                     "message": "bad_request"}, "usDiff": 27},
    ]  # fmt: skip


def test_recorded_messages_pass_and_none_is_set_aside() -> None:
    messages = recorded_messages()
    params = [found["params"] for found in messages if "data" in found.get("params", {})]
    sent = [found for found in params if found["channel"].startswith("trades.")]
    channels = {found["channel"] for found in sent}
    session = Session(sorted(channels), attempts=None)
    session.start(0.0)
    taken = 0
    for message in messages:
        for event in session.receive(json.dumps(message).encode(), 1.0):
            assert not isinstance(event, BadFrame)
            if isinstance(event, Trades):
                assert event.batch.rejected == []
                taken += len(event.batch.trades)
    assert taken == sum(len(found["data"]) for found in sent) > 0
