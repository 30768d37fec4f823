"""Dead letters and late records: the original bytes, and headers that say where from and why.

| header | meaning |
|---|---|
| `origin.topic`, `.partition`, `.offset`, `.timestamp` (ms) | where the record stood |
| `error.stage`, `error.class`, `error.message` | a dead letter: what failed |
| `late.reason`, `late.lateness_ms` | a late record: `late` or `future`, and by how much |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.kafka.writer import Headers

__all__ = [
    "Origin",
    "error_headers",
    "failure_headers",
    "header_value",
    "late_headers",
    "origin_from_headers",
]

_MESSAGE_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record stands: topic, partition, offset and timestamp (ms)."""

    topic: str
    partition: int
    offset: int
    timestamp: int

    def headers(self) -> Headers:
        """The origin headers."""
        return [
            ("origin.topic", self.topic.encode()),
            ("origin.partition", str(self.partition).encode()),
            ("origin.offset", str(self.offset).encode()),
            ("origin.timestamp", str(self.timestamp).encode()),
        ]


def error_headers(error: Exception, stage: str, origin: Origin | None = None) -> Headers:
    """Headers of a dead letter.

    Args:
        error: What made it one.
        stage: Where, e.g. `decode`.
        origin: The record's place; None for what never was a record (a websocket frame).
    """
    return failure_headers(type(error).__name__, str(error), stage, origin)


def failure_headers(
    error_class: str, message: str, stage: str, origin: Origin | None = None
) -> Headers:
    """Headers of a dead letter for an error that is no exception of ours.

    Args:
        error_class: Its name, where it comes from.
        message: What it says.
        stage: Where, e.g. `write`.
        origin: As for `error_headers`.
    """
    return [
        *(origin.headers() if origin is not None else ()),
        ("error.stage", stage.encode()),
        ("error.class", error_class.encode()),
        ("error.message", message[:_MESSAGE_LIMIT].encode("utf-8", "replace")),
    ]


def late_headers(reason: str, lateness_ms: int, origin: Origin) -> Headers:
    """Headers of a record that is not counted.

    Args:
        reason: `late` or `future`.
        lateness_ms: How far behind the watermark, or ahead of its receipt, in ms.
        origin: The record's place.
    """
    return [
        *origin.headers(),
        ("late.reason", reason.encode()),
        ("late.lateness_ms", str(lateness_ms).encode()),
    ]


def header_value(headers: Iterable[tuple[str, bytes | None]] | None, name: str) -> str | None:
    """The text of the last header of this name; None when there is none."""
    found = None
    for key, value in headers or ():
        if key == name and value is not None:
            found = value.decode("utf-8", "replace")
    return found


def origin_from_headers(headers: Iterable[tuple[str, bytes | None]] | None) -> Origin | None:
    """The origin that headers name; None when they do not."""
    items = list(headers or ())
    parts = [
        header_value(items, f"origin.{name}")
        for name in ("topic", "partition", "offset", "timestamp")
    ]
    topic, partition, offset, timestamp = parts
    if topic is None or partition is None or offset is None or timestamp is None:
        return None
    return Origin(topic, int(partition), int(offset), int(timestamp))
