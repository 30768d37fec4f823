"""What the Kafka commands share: places to begin, topic settings, how a record is printed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kstream_agg.kafka import ReceivedRecord, Start

__all__ = ["SettingType", "StartType", "record_line"]


class StartType(click.ParamType["Start"]):
    """`earliest`, `latest`, an offset, or a time as 2026-08-01T12:00Z."""

    name = "start"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Start:
        """The start that a text means."""
        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # converted before
        if value == "earliest":
            return "earliest"
        if value == "latest":
            return "latest"
        if value.isdigit():
            return int(value)
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
        if at is None or at.tzinfo is None:
            self.fail(
                f"'{value}' is no start: earliest, latest, an offset, or a time with its zone, "
                "such as 2026-08-01T12:00Z",
                param,
                ctx,
            )
        return at


class SettingType(click.ParamType["tuple[str, str | None]"]):
    """`name=value`; `name=` takes the default again."""

    name = "setting"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | None]:
        """Name and value."""
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"'{value}' is not name=value, such as retention.ms=60000", param, ctx)
        return name, text or None


def record_line(record: ReceivedRecord[bytes]) -> str:
    """A record as one line: where it stands, its key, its value."""
    key = "-" if record.key is None else record.key.decode("utf-8", "backslashreplace")
    raw = record.raw
    value = "(tombstone)" if raw is None else raw.decode("utf-8", "backslashreplace")
    return f"{record.topic}/{record.partition}/{record.offset} {key} {value}"
