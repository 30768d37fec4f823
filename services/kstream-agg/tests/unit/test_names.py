"""Channel → topic → table, and periods."""

from __future__ import annotations

import pytest

from kstream_agg.core import names
from kstream_agg.core.errors import SettingsError


@pytest.mark.parametrize(
    ("channel", "topic", "table"),
    [
        ("trades.option.BTC.100ms", "trades-option-btc", "trades_option_btc"),
        ("trades.future.BTC.100ms", "trades-future-btc", "trades_future_btc"),
        ("trades.BTC-PERPETUAL.raw", "trades-btc-perpetual", "trades_btc_perpetual"),
        (
            "trades.XRP_USDC-30JUN23-0d625-C.agg2",
            "trades-xrp_usdc-30jun23-0d625-c",
            "trades_xrp_usdc_30jun23_0d625_c",
        ),
    ],
)
def test_one_channel_names_topic_and_table(channel: str, topic: str, table: str) -> None:
    assert names.channel_topic(channel) == topic
    assert names.table_name(topic) == table


@pytest.mark.parametrize(
    "channel",
    [
        "",
        "trades",
        "book.BTC-PERPETUAL.100ms",
        "trades.option.BTC",
        "trades.a.b.c.100ms",
        "trades.option.BTC.1s",
        "trades.BTC PERPETUAL.100ms",
    ],
)
def test_what_is_no_trades_channel_is_refused(channel: str) -> None:
    with pytest.raises(SettingsError, match="not a trades channel"):
        names.channel_topic(channel)


@pytest.mark.parametrize(
    ("text", "seconds", "short"),
    [
        ("5min", 300, "5min"),
        ("60s", 60, "1min"),
        ("1h", 3600, "1h"),
        ("90s", 90, "90s"),
        ("24h", 86400, "1d"),
        ("10sec", 10, "10s"),
        ("2m", 120, "2min"),
    ],
)
def test_periods_have_one_short_name(text: str, seconds: int, short: str) -> None:
    assert names.parse_period(text) == seconds
    assert names.format_period(seconds) == short


@pytest.mark.parametrize("text", ["", "0min", "5", "min", "-5min", "5 min", "1.5h"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="not a period"):
        names.parse_period(text)


def test_output_topics_carry_period_and_advance() -> None:
    assert names.average_topic("trades-option-btc", 300) == "trades-option-btc-ewma-5min"
    assert names.average_topic("t", 300, 300) == "t-ewma-5min"
    assert names.average_topic("t", 300, 60) == "t-ewma-5min-by-1min"
    assert names.dead_letter_topic("t") == "t-dlq"
    assert names.late_topic("t") == "t-late"
