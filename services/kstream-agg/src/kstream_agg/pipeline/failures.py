"""Error steps: what becomes of records that a step could not take.

An error step receives the original messages. It is called in the thread of the step that failed,
one call at a time; what it returns is written to Kafka in its place among the results, so that
with exactly-once a dead letter is written once, and before its offset is passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from kstream_agg.core.errors import ErrorLimitError, PipelineError
from kstream_agg.core.names import dead_letter_topic
from kstream_agg.kafka.dlq import Origin, error_headers
from kstream_agg.pipeline.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Message

    from kstream_agg.kafka.writer import Headers

__all__ = [
    "DeadLetterTopic",
    "ErrorStep",
    "Failure",
    "StopAfter",
    "WriteTo",
    "describe",
    "origin_of",
]

_SHOWN_BYTES = 200


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that a step could not take.

    Args:
        message: The record as it was read.
        error: What the step raised.
        step: The step's name.
    """

    message: Message
    error: Exception
    step: str


class ErrorStep(Protocol):
    """Takes failures."""

    def handle(self, failure: Failure, seen: int) -> Iterable[Record]:
        """Take a failure.

        Args:
            failure: A record that a step could not take.
            seen: Records that were handed to the steps since the start, this one included.

        Returns:
            Records to write.

        Raises:
            ErrorLimitError: The pipeline must stop.
        """


def origin_of(message: Message) -> Origin:
    """Where a message stands in Kafka."""
    _kind, timestamp = message.timestamp()
    return Origin(message.topic() or "", message.partition() or 0, message.offset() or 0, timestamp)


def describe(failure: Failure) -> str:
    """Where it stands, in which step, and why: `topic/partition/offset step: Error: text`."""
    origin, error = origin_of(failure.message), failure.error
    place = f"{origin.topic}/{origin.partition}/{origin.offset}"
    return f"{place} {failure.step}: {type(error).__name__}: {error}"


class DeadLetterTopic:
    """Writes failed records to a topic: key, value and headers as they were, and why.

    Args:
        topic: Where to; by default `{topic}-dlq` of the topic they come from.
    """

    def __init__(self, topic: str | None = None) -> None:
        self._topic = topic

    def topics(self, sources: Iterable[str]) -> list[str]:
        """The topics it writes to, for these sources."""
        return [self._topic] if self._topic else [dead_letter_topic(name) for name in sources]

    def handle(self, failure: Failure, seen: int) -> tuple[Record, ...]:
        """Make the dead letter; see `ErrorStep`."""
        del seen
        message, origin = failure.message, origin_of(failure.message)
        headers: Headers = [*(message.headers() or ())]
        headers += error_headers(failure.error, failure.step, origin)
        topic = self._topic or dead_letter_topic(origin.topic)
        return (Record(topic, _as_bytes(message.value()), _as_bytes(message.key()), headers),)


class WriteTo:
    """Writes a line for each failed record: its place, the step, the error, its first bytes.

    Args:
        stream: For instance `sys.stderr`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def handle(self, failure: Failure, seen: int) -> tuple[Record, ...]:
        """Write the line; see `ErrorStep`."""
        del seen
        value = _as_bytes(failure.message.value())
        shown = "no value" if value is None else repr(value[:_SHOWN_BYTES])
        self._stream.write(f"{describe(failure)}: {shown}\n")
        self._stream.flush()
        return ()


class StopAfter:
    """Stops the pipeline when more records fail than allowed.

    The record that breaks a limit is not committed, nor is what follows it.

    Args:
        count: Most failed records since the start.
        ratio: Largest share of failed records among those taken since the start.
        at_least: The ratio is looked at from so many records on.

    Raises:
        PipelineError: There is no limit, or it is out of range.
    """

    def __init__(
        self, *, count: int | None = None, ratio: float | None = None, at_least: int = 100
    ) -> None:
        if count is None and ratio is None:
            raise PipelineError("StopAfter: give count or ratio")
        if count is not None and count < 0:
            raise PipelineError(f"StopAfter: count must not be negative, it is {count}")
        if ratio is not None and not 0 <= ratio < 1:
            raise PipelineError(f"StopAfter: ratio must be from 0 to less than 1, it is {ratio}")
        self._count = count
        self._ratio = ratio
        self._at_least = at_least
        self._failed = 0

    def handle(self, failure: Failure, seen: int) -> tuple[Record, ...]:
        """Count; see `ErrorStep`."""
        self._failed += 1
        if self._count is not None and self._failed > self._count:
            self._stop(f"{self._count} are allowed", failure, seen)
        share = self._failed / max(seen, 1)
        if self._ratio is not None and seen >= self._at_least and share > self._ratio:
            self._stop(f"a share of {self._ratio:g} is allowed", failure, seen)
        return ()

    def _stop(self, limit: str, last: Failure, seen: int) -> None:
        raise ErrorLimitError(
            f"{self._failed} of {seen} records failed and {limit}; the last: {describe(last)}",
            failed=self._failed,
            seen=seen,
        ) from last.error


def _as_bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
