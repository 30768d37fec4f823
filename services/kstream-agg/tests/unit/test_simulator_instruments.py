"""Names of instruments and channels, taken apart."""

from __future__ import annotations

import pytest

from kstream_agg.deribit.simulation.channels import parse_channel
from kstream_agg.deribit.simulation.instruments import kind_matches, parse_instrument


@pytest.mark.parametrize(
    ("name", "kind", "currency"),
    [
        ("BTC-27MAR26-100000-C", "option", "BTC"),
        ("BTC-5AUG23-580-P", "option", "BTC"),
        ("XRP_USDC-30JUN23-0d625-C", "option", "USDC"),
        ("BTC-PERPETUAL", "future", "BTC"),
        ("BTC-25JUN27", "future", "BTC"),
        ("SOL_USDC-PERPETUAL", "future", "USDC"),
        ("BTC_USDT", "spot", "USDT"),
        ("BTC-FS-25DEC26_PERP", "future_combo", "BTC"),
        ("BTC-CS-19MAY26-70000_75000", "option_combo", "BTC"),
    ],
)
def test_kind_and_currency(name: str, kind: str, currency: str) -> None:
    instrument = parse_instrument(name)
    assert (instrument.kind, instrument.currency) == (kind, currency)


def test_listing_of_an_option() -> None:
    row = parse_instrument("XRP_USDC-30JUN23-0d625-P").listing(3, 1000)
    assert row["expiration_timestamp"] == 1_688_112_000_000  # 2023-06-30T08:00:00Z
    assert (row["strike"], row["option_type"], row["instrument_type"]) == (0.625, "put", "linear")
    assert row["settlement_period"] == "month"


@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("BTC-17AUG26-63000-P", "day"),
        ("BTC-21AUG26-63000-P", "week"),
        ("BTC-25DEC26", "month"),
        ("BTC-PERPETUAL", "perpetual"),
    ],
)
def test_settlement_period(name: str, period: str) -> None:
    assert parse_instrument(name).listing(1, 0)["settlement_period"] == period


def test_a_day_that_does_not_exist_is_no_error() -> None:
    assert parse_instrument("BTC-31FEB26-1-C").expiry_ms is None


def test_combo_stands_for_both_kinds() -> None:
    assert kind_matches("combo", "future_combo")
    assert kind_matches("combo", "option_combo")
    assert not kind_matches("combo", "option")
    assert not kind_matches("option", "option_combo")


@pytest.mark.parametrize(
    ("channel", "carried", "not_carried"),
    [
        ("trades.option.BTC.100ms", "BTC-27MAR26-100000-C", "BTC-PERPETUAL"),
        ("trades.option.BTC.100ms", "BTC-27MAR26-100000-C", "BTC_USDC-27MAR26-100000-C"),
        ("trades.future.USDC.agg2", "SOL_USDC-PERPETUAL", "BTC-PERPETUAL"),
        ("trades.option.any.100ms", "ETH-27MAR26-100-C", "ETH-PERPETUAL"),
        ("trades.any.BTC.100ms", "BTC-FS-25DEC26_PERP", "ETH-PERPETUAL"),
        ("trades.BTC-PERPETUAL.100ms", "BTC-PERPETUAL", "BTC-25JUN27"),
    ],
)
def test_what_a_channel_carries(channel: str, carried: str, not_carried: str) -> None:
    parsed = parse_channel(channel)
    assert parsed is not None
    assert parsed.carries(parse_instrument(carried))
    assert not parsed.carries(parse_instrument(not_carried))


@pytest.mark.parametrize(
    "text",
    ["trades.option.BTC", "trades.option.BTC.1s", "trades.bond.BTC.100ms", "book.X.100ms", ""],
)
def test_texts_that_are_no_trades_channels(text: str) -> None:
    assert parse_channel(text) is None
