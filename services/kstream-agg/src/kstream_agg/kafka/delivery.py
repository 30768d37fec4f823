"""What becomes of a record that was handed to a writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from confluent_kafka import Message

from kstream_agg.core.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Generator

    from confluent_kafka import KafkaError

__all__ = ["Delivered", "Delivery"]

_POLL_S: Final = 0.05
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where a record stands now.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its place in the partition.
        timestamp: The time it carries, UTC.
    """

    topic: str
    partition: int
    offset: int
    timestamp: datetime


class Delivery(msgspec.Struct, eq=False, gc=False):
    """What becomes of one record: `await` it, or ask for its `result()`.

    Nobody has to: `flush` waits for all, and what is not delivered makes the writer raise.
    """

    _writer: Any  # a Writer
    _message: Message | None = None
    _error: DeliveryError | None = None
    _wake: list[Callable[[], None]] | None = None

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        """The client's delivery report; called by it once, from whichever thread polls."""
        if error is None:
            self._writer._delivered += 1  # noqa: SLF001 - its other half
        else:
            self._error = self._writer._fail(error, message.topic() or "")  # noqa: SLF001 - as above
        self._message = message
        if self._wake is not None:
            for wake in tuple(self._wake):
                wake()

    @property
    def is_done(self) -> bool:
        """Whether the outcome is known."""
        return self._message is not None

    def result(self, timeout_s: float = _TIMEOUT_S) -> Delivered:
        """Wait for the outcome.

        Args:
            timeout_s: Longest wait in seconds.

        Returns:
            Where the record stands.

        Raises:
            DeliveryError: It was not delivered, or not within the time.
        """
        deadline = time.monotonic() + timeout_s
        while self._message is None:
            if time.monotonic() >= deadline:
                raise DeliveryError(
                    f"the record is not acknowledged after {timeout_s:g} s",
                    remedy="is Kafka running? kstream-agg cluster status",
                )
            self._writer._serve(_POLL_S)  # noqa: SLF001 - its other half
        return self._outcome(self._message)

    def __await__(self) -> Generator[Any, None, Delivered]:
        """Wait for the outcome in an event loop; errors as `result`'s, without a time-out."""
        if self._message is None:
            loop = asyncio.get_running_loop()
            arrived = asyncio.Event()
            self._wake = [*(self._wake or ()), _waker(loop, arrived)]
            self._writer._serve_meanwhile()  # noqa: SLF001 - its other half
            if self._message is None:  # it can have come before it could wake us
                yield from arrived.wait().__await__()
        assert self._message is not None  # noqa: S101 - what has woken us
        return self._outcome(self._message)

    def _outcome(self, message: Message) -> Delivered:
        if self._error is not None:
            raise self._error
        _, at_ms = message.timestamp()
        return Delivered(
            message.topic() or "",
            message.partition() or 0,
            message.offset() or 0,
            datetime.fromtimestamp(max(at_ms, 0) / 1000, UTC),
        )


def _waker(loop: asyncio.AbstractEventLoop, arrived: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.set)

    return wake
