"""Reading trades from frames: the usual ones, the unusual ones, the bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.deribit.frames import TradeBatch, decode_frame
from kstream_agg.deribit.trades import WIRE_FIELDS, Trade

CHANNEL = "trades.option.BTC.100ms"
_RECORDED = Path(__file__).parents[5] / "shared" / "data" / "messages.jsonl"


def wire_trade(**changes: object) -> dict[str, Any]:
    trade: dict[str, Any] = {
        "timestamp": 1789344933994,
        "price": 0.0525,
        "amount": 12.5,
        "direction": "buy",
        "index_price": 76917.5,
        "instrument_name": "BTC-27MAR26-100000-C",
        "trade_seq": 467,
        "trade_id": "415305279",
        "tick_direction": 2,
    }
    trade.update(changes)
    return {key: value for key, value in trade.items() if value is not ...}


def frame_of(*trades: object, channel: str = CHANNEL) -> bytes:
    texts = (trade if isinstance(trade, str) else json.dumps(trade) for trade in trades)
    data = ",".join(texts)
    head = f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}",'
    return f'{head}"data":[{data}]}}}}'.encode()


def decode(frame: bytes) -> TradeBatch:
    batch = decode_frame(frame)
    assert isinstance(batch, TradeBatch)
    return batch


def only(frame: bytes) -> Trade:
    batch = decode(frame)
    assert not batch.rejected, batch.rejected
    (trade,) = batch.trades
    return trade


def with_literal(name: str, literal: str) -> str:
    """A trade whose field is written exactly so."""
    return json.dumps(wire_trade(**{name: "@"})).replace('"@"', literal)


def test_the_type_has_the_fields_of_the_schema_in_their_order() -> None:
    names = tuple(field["name"] for field in RAW_TRADE["fields"])
    assert Trade.__struct_fields__ == names[: len(Trade.__struct_fields__)]
    assert tuple(WIRE_FIELDS) == Trade.__struct_fields__
    assert names[len(WIRE_FIELDS) :] == ("received_at", "source", "extra")


def test_a_usual_frame_is_decoded_with_optional_fields_null() -> None:
    trade = only(frame_of(wire_trade(mark_price=None)))
    assert (trade.instrument_name, trade.trade_seq) == ("BTC-27MAR26-100000-C", 467)
    assert (trade.index_price, trade.mark_price, trade.iv, trade.liquidation) == (
        76917.5,
        None,
        None,
        None,
    )
    assert trade.legs_text() is None


@pytest.mark.parametrize("literal", ["1.0e3", "1000.0", "1000", "1E3"])
def test_an_integer_may_be_written_as_a_number_with_fraction_or_exponent(literal: str) -> None:
    assert only(frame_of(with_literal("trade_seq", literal))).trade_seq == 1000


@pytest.mark.parametrize(
    ("literal", "value"), [("10", 10.0), ("1.0e3", 1000.0), ("1.423e-4", 0.0001423), ("-1", -1.0)]
)
def test_a_number_may_be_written_in_any_form(literal: str, value: float) -> None:
    assert only(frame_of(with_literal("price", literal))).price == value


def test_integers_above_2_to_the_53rd_stay_exact() -> None:
    trade = only(frame_of(wire_trade(starbase_match_id=216172782113783809)))
    assert trade.starbase_match_id == 216172782113783809
    written = with_literal("starbase_match_id", "2.16172782113783809e17")
    assert only(frame_of(written)).starbase_match_id == 216172782113783809


def test_unseen_values_pass_through() -> None:
    trade = only(frame_of(wire_trade(direction="zero", liquidation="MTX", tick_direction=99)))
    assert (trade.direction, trade.liquidation, trade.tick_direction) == ("zero", "MTX", 99)


def test_unknown_keys_are_kept_as_json_text_and_the_neighbours_are_untouched() -> None:
    odd = wire_trade(new_key={"a": [1, 2.5]}, received_at=1, source="x", extra=None)
    batch = decode(frame_of(wire_trade(), odd, wire_trade()))
    assert len(batch.trades) == 3
    assert not batch.rejected
    assert set(batch.extras) == {1}
    assert json.loads(batch.extras[1]) == {
        "new_key": {"a": [1, 2.5]},
        "received_at": 1,
        "source": "x",
        "extra": None,
    }


@pytest.mark.parametrize("unknown", [{}, {"new_key": 1}])
def test_the_legs_of_a_combo_parent_are_kept_as_json_text(unknown: dict[str, int]) -> None:
    legs = [wire_trade(price=0.1, iv=45.91), wire_trade(trade_seq=468)]
    trade = only(frame_of(wire_trade(legs=legs, combo_id="BTC-CS-19MAY26-70000_75000", **unknown)))
    text = trade.legs_text()
    assert text is not None
    assert json.loads(text) == legs


def test_ids_written_as_numbers_become_texts() -> None:
    trade = only(frame_of(wire_trade(combo_trade_id=244343034, block_trade_id=154)))
    assert (trade.combo_trade_id, trade.block_trade_id) == ("244343034", "154")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (json.dumps(wire_trade(price=...)), "'price' is missing"),
        (json.dumps(wire_trade(price=None)), "'price' is null"),
        (json.dumps(wire_trade(trade_seq="12")), "'trade_seq' must be a whole number, not a text"),
        (json.dumps(wire_trade(trade_seq=True)), "'trade_seq' must be a whole number"),
        (json.dumps(wire_trade(trade_seq=1.5)), "'trade_seq' must be a whole number, not 1.5"),
        (json.dumps(wire_trade(trade_seq=2**63)), "'trade_seq' does not fit into 64 bits"),
        (with_literal("trade_seq", "1e300000"), "'trade_seq' is 1E+300000"),
        (with_literal("trade_seq", "1e300"), "'trade_seq' does not fit into 64 bits"),
        (json.dumps(wire_trade(price="0.1")), "'price' must be a number, not a text"),
        (with_literal("price", "1e999"), "'price' is 1E+999, which is no finite number"),
        (with_literal("price", "1" + "0" * 400), "'price' is too large a number"),
        (with_literal("price", "NaN"), "'price' is nan, which is no finite number"),
        (with_literal("iv", "-Infinity"), "'iv' is -inf, which is no finite number"),
        (with_literal("direction", '"b\\u0000y"'), "'direction' contains U+0000"),
        (with_literal("new_key", '{"a":["\\u0000"]}'), "'new_key.a' contains U+0000"),
        (with_literal("direction", '"\\ud800"'), "'direction' contains half a surrogate pair"),
        (json.dumps(wire_trade(direction=1)), "'direction' must be a text, not a number"),
        (json.dumps(wire_trade(trade_id=False)), "'trade_id' must be a text, not a boolean"),
        (json.dumps(wire_trade(timestamp=-1)), "'timestamp' -1 is not between 1970 and 9999"),
        (json.dumps(wire_trade(timestamp=10**18)), "is not between 1970 and 9999"),
        ("null", "a trade must be an object, not null"),
        ('["x"]', "a trade must be an object, not a list"),
    ],
)
def test_a_bad_trade_is_rejected_with_its_reason_and_its_neighbours_go_on(
    bad: str, reason: str
) -> None:
    batch = decode(frame_of(wire_trade(), bad, wire_trade(trade_seq=468)))
    assert [trade.trade_seq for trade in batch.trades] == [467, 468]
    (rejected,) = batch.rejected
    assert reason in str(rejected.error)
    assert rejected.error.stage == "decode"
    sent, kept = json.loads(bad), json.loads(rejected.wire)
    assert kept.keys() == sent.keys() if isinstance(sent, dict) else kept == sent


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (frame_of(wire_trade())[:-1], "not JSON"),
        (frame_of(wire_trade()).replace(b'"buy"', b'"b\xffy"'), "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 100_000, "not JSON"),
        (
            b'{"method":"subscription","params":{"channel":"trades.option.BTC.100ms"}}',
            "no list 'data'",
        ),
    ],
    ids=["empty", "cut", "binary", "cut late", "not utf-8", "list", "deep", "no data"],
)
def test_a_frame_that_cannot_be_understood_says_why(frame: bytes, reason: str) -> None:
    with pytest.raises(InvalidRecordError, match=reason) as caught:
        decode_frame(frame)
    assert caught.value.stage == "decode"


def test_a_trade_nested_too_deeply_ends_nothing() -> None:
    deep = with_literal("new_key", "[" * 900 + "]" * 900)
    try:
        batch = decode_frame(frame_of(deep))
    except InvalidRecordError as error:
        assert "nested" in str(error)  # noqa: PT017 - either answer is right, a RecursionError is not
    else:
        assert isinstance(batch, TradeBatch)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":4,"result":[],"testnet":false}',
        b'{"method":"subscription","params":{"channel":"platform_state","data":{"locked":true}}}',
        b'{"method":"subscription","params":[]}',
        b"{}",
    ],
)
def test_other_messages_come_back_as_they_are(frame: bytes) -> None:
    assert decode_frame(frame) == json.loads(frame)


RECORDED_SHAPES = [
    # As the wire carried them in 2019, 2020 and in the Starbase era; values are our own.
    wire_trade(tick_direction=2, index_price=..., iv=...),
    wire_trade(liquidation="T", mark_price=4469.03),
    wire_trade(trade_id="ETH-169110812", instrument_name="ETH-PERPETUAL", contracts=53.0),
    wire_trade(starbase_match_id=216172782113783808, starbase_timestamp=1789344933994123456),
    wire_trade(block_trade_id="BLOCK-282155", block_trade_leg_count=3, block_rfq_id=77),
]


@pytest.mark.parametrize("shape", RECORDED_SHAPES)
def test_every_recorded_shape_needs_no_second_reading(shape: dict[str, Any]) -> None:
    batch = decode(frame_of(shape))
    assert not batch.rejected
    assert not batch.extras
    assert {name: getattr(batch.trades[0], name) for name in shape} == shape


def test_the_recorded_frames_are_understood() -> None:
    """The recorded frames where they are at hand, else frames of the same shapes."""
    messages = (
        [json.loads(line)["message"] for line in _RECORDED.read_text("utf-8").splitlines()]
        if _RECORDED.exists()
        else [{"method": "subscription", "params": {"channel": CHANNEL, "data": RECORDED_SHAPES}}]
    )
    trades = 0
    for message in messages:
        is_trade = "trade_seq" in message
        frame = frame_of(message) if is_trade else json.dumps(message).encode()
        decoded = decode_frame(frame)
        if isinstance(decoded, TradeBatch):
            assert not decoded.rejected
            assert not decoded.extras
            trades += len(decoded.trades)
    assert trades >= 5
