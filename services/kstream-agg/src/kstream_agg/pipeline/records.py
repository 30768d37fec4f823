"""What a pipeline gives to Kafka: records to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kstream_agg.kafka.writer import Headers

__all__ = ["Record"]


@dataclass(frozen=True, slots=True)
class Record:
    """A record to write.

    Args:
        topic: Where to.
        value: The encoded value; None is a tombstone.
        key: Decides the partition; None spreads at random.
        headers: Name and value pairs, in order.
    """

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = field(default_factory=list)
