"""Dead letters as they stand in their topics, whoever wrote them: our programs or Kafka Connect.

| what | our header (`kafka.dlq`) | Connect's |
|---|---|---|
| where from | `origin.topic`, `.partition`, `.offset`, `.timestamp` | `__connect.errors.topic`, … |
| stage | `error.stage` | `__connect.errors.stage` |
| class | `error.class` | `__connect.errors.exception.class.name` |
| message | `error.message` | `__connect.errors.exception.message` |

https://cwiki.apache.org/confluence/display/KAFKA/KIP-298%3A+Error+Handling+in+Connect
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from kstream_agg.core.errors import SettingsError
from kstream_agg.kafka.dlq import Origin, header_value, origin_from_headers
from kstream_agg.kafka.topic_reader import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kstream_agg.kafka.topic_reader import Record, TopicPart, TopicReader
    from kstream_agg.kafka.writer import Headers

__all__ = [
    "REPLAYED_FROM",
    "DeadLetter",
    "LetterFilter",
    "Place",
    "Selection",
    "parse_letter",
    "parse_selection",
    "read_letters",
]

REPLAYED_FROM: Final = "replayed.from"
"""Header of a record that was sent back: the dead letter's place."""

_CONNECT: Final = "__connect.errors."
_OURS: Final = ("origin.", "error.", _CONNECT)
_SELECTION: Final = re.compile(
    r"^(?P<topic>[A-Za-z0-9._-]+)"
    r"(?:/(?P<partition>\d+)(?:/(?P<first>\d+)(?:-(?P<last>\d+)?)?)?)?$"
)


class Place(NamedTuple):
    """Where a record stands, written `topic/partition/offset`."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record in a dead-letter topic.

    Attributes:
        place: Where it stands.
        timestamp: When it was set aside, in ms.
        key: As in its original topic.
        value: As in its original topic.
        headers: Those it had there, and those that say why it is here.
        origin: Where it stood; None for what never was a record (a websocket frame). Its
            timestamp is -1 where Connect wrote the letter.
        stage: What failed, e.g. `decode`, `VALUE_CONVERTER`, `write`.
        error_class: The error's class.
        message: The error's message.
    """

    place: Place
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    origin: Origin | None
    stage: str
    error_class: str
    message: str

    @property
    def origin_place(self) -> Place | None:
        """Where it stood."""
        if self.origin is None:
            return None
        return Place(self.origin.topic, self.origin.partition, self.origin.offset)

    @property
    def replayed_from(self) -> str | None:
        """The dead letter's place that the failed record had been sent back from."""
        return header_value(self.headers, REPLAYED_FROM)

    def original_headers(self) -> Headers:
        """The headers it had before it failed."""
        return [
            (name, value)
            for name, value in self.headers
            if not name.startswith(_OURS) and name != REPLAYED_FROM
        ]


def parse_letter(record: Record) -> DeadLetter:
    """What a record of a dead-letter topic says; empty texts where it does not say."""

    def first(*names: str) -> str:
        found = (header_value(record.headers, name) for name in names)
        return next((text for text in found if text is not None), "")

    return DeadLetter(
        place=Place(record.part.topic, record.part.partition, record.offset),
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        origin=_origin(record.headers),
        stage=first("error.stage", f"{_CONNECT}stage"),
        error_class=first("error.class", f"{_CONNECT}exception.class.name"),
        message=first("error.message", f"{_CONNECT}exception.message"),
    )


def _origin(headers: Sequence[tuple[str, bytes | None]]) -> Origin | None:
    try:
        ours = origin_from_headers(headers)
        if ours is not None:
            return ours
        parts = [
            header_value(headers, _CONNECT + name) for name in ("topic", "partition", "offset")
        ]
        topic, partition, offset = parts
        if topic is None or partition is None or offset is None:
            return None
        return Origin(topic, int(partition), int(offset), -1)
    except ValueError:  # headers like ours that somebody else wrote
        return None


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant; None takes all.

    Attributes:
        origin: Topic they come from.
        stage: What failed, whole, in any case.
        error: The error's class: its last part is enough (`CheckViolation`).
        since_ms: Set aside then or later.
        until_ms: Set aside before.
    """

    origin: str | None = None
    stage: str | None = None
    error: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether the letter is meant."""
        origin = letter.origin.topic if letter.origin else None
        short = re.split(r"[.$]", letter.error_class)[-1]
        return (
            (self.origin is None or origin == self.origin)
            and (self.stage is None or letter.stage.lower() == self.stage.lower())
            and (self.error is None or self.error in (letter.error_class, short))
            and (self.since_ms is None or letter.timestamp >= self.since_ms)
            and (self.until_ms is None or letter.timestamp < self.until_ms)
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """A topic, one of its partitions, or some of its offsets; None takes all."""

    topic: str
    partition: int | None = None
    first: int | None = None
    last: int | None = None

    def includes(self, place: Place) -> bool:
        """Whether the record of this place is chosen."""
        return (
            place.topic == self.topic
            and self.partition in (None, place.partition)
            and (self.first is None or place.offset >= self.first)
            and (self.last is None or place.offset <= self.last)
        )

    def span(self, part: TopicPart, stands: Span) -> Span | None:
        """What is chosen of what stands in a partition; None when nothing is."""
        if part.topic != self.topic or self.partition not in (None, part.partition):
            return None
        begin = stands.begin if self.first is None else max(stands.begin, self.first)
        end = stands.end if self.last is None else min(stands.end, self.last + 1)
        return Span(begin, end) if begin < end else None


def parse_selection(text: str) -> Selection:
    """Read `TOPIC`, `TOPIC/PARTITION`, `TOPIC/PARTITION/OFFSET`, `…/FROM-TO` or `…/FROM-`.

    Raises:
        SettingsError: It is none of them.
    """
    match = _SELECTION.match(text)
    if match is None:
        raise SettingsError(
            f"'{text}' names no dead letters",
            remedy="write TOPIC, TOPIC/PARTITION, TOPIC/PARTITION/OFFSET or "
            "TOPIC/PARTITION/FROM-TO, e.g. trades-option-btc-dlq/0/17",
        )
    partition, first, last = (
        None if match[name] is None else int(match[name]) for name in ("partition", "first", "last")
    )
    if "-" not in text.rsplit("/", 1)[-1] or first is None:
        last = first
    return Selection(match["topic"], partition, first, last)


def read_letters(
    reader: TopicReader, selections: Sequence[Selection], which: LetterFilter
) -> Iterator[DeadLetter]:
    """The letters that are chosen, each once; those of one partition in order.

    Args:
        reader: Where from.
        selections: Topics and offsets; a topic that does not exist is passed over.
        which: What else they must be.

    Raises:
        UnavailableError: The broker does not give them.
    """
    cover: dict[TopicPart, Span] = {}
    for part, stands in reader.spans({selection.topic for selection in selections}).items():
        spans = [span for item in selections if (span := item.span(part, stands)) is not None]
        if spans:
            begin, end = min(span.begin for span in spans), max(span.end for span in spans)
            cover[part] = Span(begin, end)
    for record in reader.read(cover):
        letter = parse_letter(record)
        if which.matches(letter) and any(item.includes(letter.place) for item in selections):
            yield letter
