"""Waits until a consumer group has passed fixed ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import InvalidRecordError, UnavailableError
from kstream_agg.verify.reading import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kstream_agg.kafka.wire import RecordDecoder
    from kstream_agg.sinks.patience import Patience
    from kstream_agg.verify.reading import Position, Record, TopicPart, TopicReader

__all__ = [
    "Group",
    "committed_offset",
    "readable_by",
    "wait_for_group",
    "wait_for_records",
]

# So near its end a partition is looked into: there may be nothing left that a group must read.
_LOOK_INTO: Final = 10_000


def committed_offset(position: Position) -> int:
    """The next offset."""
    return position.offset


def readable_by(decoder: RecordDecoder) -> Callable[[Record], bool]:
    """Tells records a sink writes a row of from those that go to its dead-letter topic."""

    def is_readable(record: Record) -> bool:
        if record.value is None:
            return False
        try:
            decoder.decode(record.value)
        except InvalidRecordError:
            return False
        return True

    return is_readable


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group that is waited for.

    Args:
        name: Its id.
        position_of: Takes the next offset it will read out of what it has committed.
        must_read: Which records it must have read. The JDBC sink commits no offset behind a
            record that went to the dead-letter topic until a good one follows, and no reader is
            given the end of a transaction: with such at its end, a partition never shows as read.
    """

    name: str
    position_of: Callable[[Position], int] = committed_offset
    must_read: Callable[[Record], bool] = lambda _: True


def wait_for_group(
    reader: TopicReader, group: Group, spans: Mapping[TopicPart, Span], patience: Patience
) -> dict[TopicPart, int]:
    """Wait until a group has read all records of the spans.

    Args:
        reader: The cluster.
        group: The group.
        spans: What it must have read; spans without records are passed by definition.
        patience: How long.

    Returns:
        Its position in each partition, at least the span's end.

    Raises:
        UnavailableError: It has not in time; the message says how far it is.
    """
    while True:
        found = {part: group.position_of(p) for part, p in reader.positions(group.name).items()}
        behind = {
            part: span
            for part, span in spans.items()
            if not _has_passed(
                reader, group, part, Span(max(span.begin, found.get(part, 0)), span.end)
            )
        }
        if not behind:
            return {part: max(found.get(part, 0), span.end) for part, span in spans.items()}
        if patience.is_over:
            part, span = next(iter(behind.items()))
            at = found.get(part)
            raise UnavailableError(
                f"group '{group.name}' has not read {part.topic}, partition {part.partition} to "
                f"its end {span.end}: it is at {'no offset yet' if at is None else at}",
                remedy="is it running (make status)? a longer wait: verify --timeout SECONDS",
            )
        patience.pause()


def _has_passed(reader: TopicReader, group: Group, part: TopicPart, rest: Span) -> bool:
    """Whether nothing is left to read in the rest of a partition."""
    if rest.begin >= rest.end:
        return True
    if rest.end - rest.begin > _LOOK_INTO:
        return False
    return not reader.has_records(part, rest, group.must_read)


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
