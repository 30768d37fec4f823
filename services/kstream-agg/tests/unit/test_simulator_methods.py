"""The simulated exchange's history and listings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.deribit.simulation.exchange import Exchange
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.methods import call_public, call_rest
from kstream_agg.deribit.simulation.rpc import Moment, Params, RpcError

if TYPE_CHECKING:
    from kstream_agg.deribit.recording import Recording

OPTION, PERP, ETH = "BTC-27MAR26-60000-C", "BTC-PERPETUAL", "ETH-PERPETUAL"
RECORDING = generate_trades(seed=3, count=300, instruments=[OPTION, PERP, ETH])
NOW = Moment(1_790_000_000_000, 0.0)


def published(recording: Recording = RECORDING, *, history: int = 1000) -> Exchange:
    exchange = Exchange(recording.trades, history=history)
    exchange.publish(recording.trades)
    return exchange


EXCHANGE = published()


def call(method: str, exchange: Exchange = EXCHANGE, /, **params: object) -> Any:  # noqa: ANN401 - whatever JSON gives
    result = call_public(exchange, f"public/{method}", Params(params), NOW)
    return msgspec.json.decode(msgspec.json.encode(result))


def of(*names: str) -> list[dict[str, Any]]:
    return [trade for trade in RECORDING.trades if trade["instrument_name"] in names]


def test_nothing_is_known_before_it_happens() -> None:
    exchange = Exchange(RECORDING.trades)
    answer = call("get_last_trades_by_currency", exchange, currency="BTC")
    assert answer == {"trades": [], "has_more": False}
    exchange.publish(RECORDING.trades[:1])
    trades = call("get_last_trades_by_currency", exchange, currency="any")["trades"]
    assert trades == [RECORDING.trades[0]]


def test_the_last_ten_by_default() -> None:
    answer = call("get_last_trades_by_currency", currency="BTC")
    assert answer["trades"] == of(OPTION, PERP)[-10:]
    assert answer["has_more"] is True


def test_count_and_sorting() -> None:
    newest = call("get_last_trades_by_currency", currency="BTC", count=3, sorting="desc")
    assert newest["trades"] == of(OPTION, PERP)[:-4:-1]
    oldest = call("get_last_trades_by_currency", currency="BTC", count=3, sorting="asc")
    assert oldest["trades"] == of(OPTION, PERP)[:3]


def test_kind_and_currency() -> None:
    options = call("get_last_trades_by_currency", currency="BTC", kind="option", count=1000)
    assert options == {"trades": of(OPTION), "has_more": False}
    futures = call("get_last_trades_by_currency", currency="any", kind="future", count=1000)
    assert sorted(trade["trade_id"] for trade in futures["trades"]) == sorted(
        trade["trade_id"] for trade in of(PERP, ETH)
    )


def test_ids_bound_inclusively() -> None:
    trades = of(ETH)
    answer = call(
        "get_last_trades_by_currency",
        currency="ETH",
        start_id=trades[2]["trade_id"],
        end_id=trades[5]["trade_id"],
    )
    assert answer == {"trades": trades[2:6], "has_more": False}


def test_seqs_bound_inclusively_and_are_read_from_the_start() -> None:
    answer = call("get_last_trades_by_instrument", instrument_name=PERP, start_seq=5, count=4)
    assert [trade["trade_seq"] for trade in answer["trades"]] == [5, 6, 7, 8]
    assert answer["has_more"] is True
    answer = call("get_last_trades_by_instrument", instrument_name=PERP, start_seq=5, end_seq=7)
    assert [trade["trade_seq"] for trade in answer["trades"]] == [5, 6, 7]
    assert answer["has_more"] is False


@pytest.mark.parametrize(
    ("method", "whose"),
    [
        ("get_last_trades_by_currency_and_time", {"currency": "BTC"}),
        ("get_last_trades_by_instrument_and_time", {"instrument_name": PERP}),
    ],
)
def test_times_bound_inclusively(method: str, whose: dict[str, Any]) -> None:
    expected = of(PERP) if "instrument_name" in whose else of(OPTION, PERP)
    low, high = expected[10]["timestamp"], expected[60]["timestamp"]
    answer = call(method, **whose, start_timestamp=low, end_timestamp=high, count=1000)
    assert answer["trades"] == [trade for trade in expected if low <= trade["timestamp"] <= high]


@given(st.integers(1, 40), st.sampled_from([1, 2, 7, 20]))
def test_paging_by_seq_gives_every_trade_once(first: int, size: int) -> None:
    got: list[int] = []
    following = first
    while True:
        answer = call(
            "get_last_trades_by_instrument",
            instrument_name=PERP,
            start_seq=following,
            count=size,
            sorting="asc",
        )
        got += [trade["trade_seq"] for trade in answer["trades"]]
        if not answer["has_more"]:
            break
        following = got[-1] + 1
    assert got == [trade["trade_seq"] for trade in of(PERP) if trade["trade_seq"] >= first]


def test_the_oldest_trades_are_given_up() -> None:
    exchange = published(history=50)
    trades = call("get_last_trades_by_currency", exchange, currency="BTC", count=1000)["trades"]
    assert trades == of(OPTION, PERP)[-50:]
    own = call("get_last_trades_by_instrument", exchange, instrument_name=PERP, count=1000)
    assert own["trades"] == [trade for trade in trades if trade["instrument_name"] == PERP]
    assert exchange.published == 300


@pytest.mark.parametrize(
    ("method", "params", "code", "param"),
    [
        ("get_last_trades_by_currency", {"currency": "BTC", "count": 1001}, -32602, "count"),
        ("get_last_trades_by_currency", {"currency": "BTC", "count": 0}, -32602, "count"),
        ("get_last_trades_by_currency", {"currency": "BTC", "count": True}, -32602, "count"),
        ("get_last_trades_by_currency", {"currency": "BTC", "sorting": "up"}, -32602, "sorting"),
        ("get_last_trades_by_currency", {"currency": "BTC", "kind": "bond"}, -32602, "kind"),
        ("get_last_trades_by_currency", {"currency": "XXX"}, -32602, "currency"),
        ("get_last_trades_by_currency", {}, -32602, "currency"),
        ("get_last_trades_by_currency", {"currency": "BTC", "start_id": "x"}, -32602, "start_id"),
        ("get_last_trades_by_currency_and_time", {"currency": "BTC"}, -32602, "start_timestamp"),
        ("get_last_trades_by_instrument", {}, -32602, "instrument_name"),
        ("get_last_trades_by_instrument", {"instrument_name": "X"}, 10020, None),
    ],
)
def test_wrong_parameters(
    method: str, params: dict[str, Any], code: int, param: str | None
) -> None:
    with pytest.raises(RpcError) as caught:
        call(method, **params)
    assert caught.value.code == code
    named = caught.value.data["param"] if isinstance(caught.value.data, dict) else None
    assert named == param


def test_instruments() -> None:
    rows = call("get_instruments", currency="BTC")
    assert [row["instrument_name"] for row in rows] == [
        name for name in RECORDING.instruments if name != ETH
    ]
    assert {row["kind"] for row in call("get_instruments", currency="any", kind="future")} == {
        "future"
    }
    assert len({row["instrument_id"] for row in rows}) == 2
    assert call("get_instruments", currency="BTC", expired=True) == []


def test_status_and_time() -> None:
    assert call("status")["locked"] == "false"
    assert call("get_time") == NOW.wall_ms


def test_calls_for_websockets_only() -> None:
    with pytest.raises(RpcError) as caught:
        call_rest(EXCHANGE, "public/set_heartbeat", Params({"interval": "10"}), NOW)
    assert caught.value.code == 10030
