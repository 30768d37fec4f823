"""Waits until a consumer group has passed fixed ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import UnavailableError
from kstream_agg.verify.reading import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kstream_agg.sinks.patience import Patience
    from kstream_agg.verify.reading import Position, TopicPart, TopicReader

__all__ = ["aggregator_position", "committed_offset", "wait_for_group", "wait_for_records"]

# A transaction's end takes an offset that no reader is given and a sink may never commit; more
# than this many such offsets in a row at a partition's end are waited for like records.
_CONTROL_RECORDS: Final = 10


def committed_offset(position: Position) -> int:
    """The next offset of an ordinary consumer."""
    return position.offset


def aggregator_position(position: Position) -> int:
    """The next offset of the aggregator.

    It commits the start of its oldest open window, where it reads again from after a restart,
    and beside it, as `p` in a JSON text, how far it has read.
    """
    try:
        read = json.loads(position.metadata or "null")["p"]
    except (ValueError, TypeError, KeyError):
        return position.offset
    return read if isinstance(read, int) else position.offset


def wait_for_group(
    reader: TopicReader,
    group: str,
    spans: Mapping[TopicPart, Span],
    position_of: Callable[[Position], int],
    patience: Patience,
) -> dict[TopicPart, int]:
    """Wait until a group has read all records of the spans.

    Args:
        reader: The cluster.
        group: The consumer group.
        spans: What it must have read; spans without records are passed by definition.
        position_of: Takes the next offset out of what the group has committed.
        patience: How long.

    Returns:
        Its position in each partition, at least the span's end.

    Raises:
        UnavailableError: It has not in time; the message says how far it is.
    """
    while True:
        found = {part: position_of(p) for part, p in reader.positions(group).items()}
        behind = {
            part: span
            for part, span in spans.items()
            if not _has_passed(reader, part, span, found.get(part))
        }
        if not behind:
            return {part: max(found.get(part, 0), span.end) for part, span in spans.items()}
        if patience.is_over:
            part, span = next(iter(behind.items()))
            at = found.get(part)
            raise UnavailableError(
                f"group '{group}' has not read {part.topic}, partition {part.partition} to its "
                f"end {span.end}: it is at {'no offset yet' if at is None else at}",
                remedy="is it running (make status)? a longer wait: verify --timeout SECONDS",
            )
        patience.pause()


def _has_passed(reader: TopicReader, part: TopicPart, span: Span, at: int | None) -> bool:
    if span.begin >= span.end:
        return True
    begin = max(span.begin, at or 0)
    if begin >= span.end:
        return True
    if span.end - begin > _CONTROL_RECORDS:
        return False
    return not reader.has_records(part, Span(begin, span.end))


def wait_for_records(
    reader: TopicReader, topics: tuple[str, ...], what: str, patience: Patience
) -> None:
    """Wait until one of the topics has a record.

    Args:
        reader: The cluster.
        topics: The topics, which need not exist yet.
        what: What is waited for, for the error.
        patience: How long.

    Raises:
        UnavailableError: None has in time.
    """
    while not any(reader.has_records(part, span) for part, span in reader.spans(topics).items()):
        if patience.is_over:
            raise UnavailableError(
                f"there is no {what} yet",
                remedy="is the aggregator running (make status)? a window closes when a later "
                "trade passes its end; a longer wait: verify --timeout SECONDS",
            )
        patience.pause()
