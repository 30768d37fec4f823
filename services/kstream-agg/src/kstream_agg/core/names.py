"""Names derived from a channel: one setting moves topic, aggregates, sinks and tables.

trades.option.BTC.100ms          → topic trades-option-btc      → table trades_option_btc
trades.BTC-PERPETUAL.100ms       → topic trades-btc-perpetual   → table trades_btc_perpetual
trades-option-btc, 300 s         → topic trades-option-btc-ewma-5min
"""

from __future__ import annotations

import re

from kstream_agg.core.errors import SettingsError

__all__ = [
    "average_topic",
    "changelog_topic",
    "channel_topic",
    "dead_letter_topic",
    "format_period",
    "late_topic",
    "parse_period",
    "table_name",
    "value_subject",
]

_CHANNEL = re.compile(
    r"^trades\.(?P<body>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)?)\.(?P<interval>raw|100ms|agg2)$"
)
_PERIOD = re.compile(r"^(?P<count>[1-9]\d*)(?P<unit>s|sec|min|m|h|d)$")
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def channel_topic(channel: str) -> str:
    """The raw topic of a trades channel.

    Args:
        channel: `trades.{kind}.{currency}.{interval}` or `trades.{instrument_name}.{interval}`.

    Raises:
        SettingsError: The text is not a trades channel.
    """
    match = _CHANNEL.match(channel)
    if match is None:
        raise SettingsError(
            f"'{channel}' is not a trades channel",
            remedy="use trades.{kind}.{currency}.{interval} or trades.{instrument}.{interval}, "
            "with interval 100ms, agg2 or raw; e.g. trades.option.BTC.100ms",
        )
    return "trades-" + match["body"].replace(".", "-").lower()


def parse_period(text: str) -> int:
    """Seconds of a period such as `5min`, `1h`, `30s`.

    Raises:
        SettingsError: The text is not a period.
    """
    match = _PERIOD.match(text)
    if match is None:
        raise SettingsError(
            f"'{text}' is not a period", remedy="use a whole number and s, min, h or d, e.g. 5min"
        )
    return int(match["count"]) * _SECONDS[match["unit"]]


def format_period(seconds: int) -> str:
    """The shortest name of a period: 300 → `5min`, 3600 → `1h`, 90 → `90s`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def average_topic(raw_topic: str, period_s: int, advance_s: int | None = None) -> str:
    """The output topic of one period over one raw topic.

    Args:
        raw_topic: The topic that is aggregated.
        period_s: Length of the windows in seconds.
        advance_s: Advance of hopping windows in seconds; None or `period_s` for tumbling ones.
    """
    name = f"{raw_topic}-ewma-{format_period(period_s)}"
    if advance_s is not None and advance_s != period_s:
        name += f"-by-{format_period(advance_s)}"
    return name


def changelog_topic(group_id: str, raw_topic: str) -> str:
    """Where a group keeps the state of what it makes of `raw_topic`."""
    return f"{group_id}-{raw_topic}-changelog"


def dead_letter_topic(topic: str) -> str:
    """Where records of `topic` go that nothing can process."""
    return f"{topic}-dlq"


def late_topic(topic: str) -> str:
    """Where records of `topic` go that came too late to be counted."""
    return f"{topic}-late"


def table_name(topic: str) -> str:
    """The Postgres table of a topic."""
    return re.sub(r"[^a-z0-9_]", "_", topic.lower())


def value_subject(topic: str) -> str:
    """The registry's subject of a topic's values (TopicNameStrategy)."""
    return f"{topic}-value"
