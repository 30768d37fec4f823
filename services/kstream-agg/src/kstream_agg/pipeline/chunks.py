"""What passes from step to step: items, the records they come from, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

    from kstream_agg.pipeline.processor import Partition
    from kstream_agg.pipeline.records import Record

__all__ = ["Batched", "Chunk", "DeadLetter", "Drain"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Records that an error step has returned, in place of the message at an offset."""

    offset: int
    records: tuple[Record, ...]


@dataclass(slots=True)
class Chunk:
    """A map's output for one batch of a partition, or a reduce step's output.

    Args:
        epoch: Of which epoch of the engine; what is of an older one is discarded.
        items: The items. None, when all records failed or a step returned nothing.
        messages: The original messages of the items.
        ends: Partition to the offset behind the last record that is covered, failed ones too.
        dead: What error steps have returned, in order.
        whole: True: one item stands for all messages. False: each for the one at its place, and
            all are of one partition.
    """

    epoch: int
    items: Sequence[Any]
    messages: Sequence[Message]
    ends: dict[Partition, int]
    dead: list[DeadLetter] = field(default_factory=list)
    whole: bool = True


@dataclass(eq=False, slots=True)
class Batched:
    """Messages of one partition, on their way to the map."""

    epoch: int
    partition: Partition
    messages: Sequence[Message]


@dataclass(eq=False, slots=True)
class Drain:
    """Goes through all steps behind what was handed over before, and has them close up.

    Args:
        epoch: As a chunk's.
        lanes: Through how many map lanes it comes; the first reduce step waits for all.
    """

    epoch: int
    lanes: int
    arrived: bool = False
