"""One request on its way from the decoded body to its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kstream_agg.proxy.outcomes import OK, Answer, Failure, answer, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message
    from opentelemetry.trace import Span

    from kstream_agg.proxy.access import Client
    from kstream_agg.proxy.requests import Decoded

__all__ = ["AwaitedRecord", "PushInProgress"]


class PushInProgress:
    """A request whose records are on their way.

    Each record is settled once, by its place; when all are, the client is answered.

    Args:
        push: The decoded request.
        started: When it came, on the monotonic clock.
        respond: Sends the answer.
        finished: Told of the status just before.
    """

    __slots__ = (
        "as_reference",
        "client",
        "failures",
        "finished",
        "headers",
        "left",
        "push",
        "report",
        "respond",
        "span",
        "started",
        "traceparent",
    )

    def __init__(
        self,
        push: Decoded,
        started: float,
        respond: Callable[[Answer], None],
        finished: Callable[[PushInProgress, int], None],
    ) -> None:
        self.push = push
        self.started = started
        self.respond = respond
        self.finished = finished
        self.client: Client | None = None
        self.failures = push.failures
        self.left = len(push.records)
        self.headers: tuple[tuple[str, str], ...] = ()
        self.span: Span | None = None
        self.traceparent = b""
        self.as_reference = False
        self.report: Callable[[KafkaError | None, Message], None] | None = None

    def settle(self, index: int, failure: Failure | None) -> None:
        """A record's outcome is known."""
        if failure is not None:
            self.failures[index] = failure
        self.left -= 1
        if not self.left:
            self.complete()

    def settle_many(self, count: int) -> None:
        """The outcome of so many records is known; failures are noted already."""
        self.left -= count
        if not self.left:
            self.complete()

    def complete(self) -> None:
        """Answer the client."""
        if not self.failures and not self.headers:
            self.finished(self, 200)
            self.respond(OK)
            return
        made = answer(
            len(self.push.records),
            self.failures,
            waited=self.push.wait,
            as_reference=self.as_reference,
        )
        if self.headers:
            made = Answer(made.status, made.body, made.headers + self.headers)
        self.finished(self, made.status)
        self.respond(made)


@dataclass(slots=True)
class AwaitedRecord:
    """A record whose client waits; librdkafka calls it with the delivery report."""

    request: PushInProgress
    index: int

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        """Take the delivery report."""
        request = self.request
        if request.report is not None:
            request.report(error, message)
        failure = None if error is None else failure_of(error, message.topic() or "")
        request.settle(self.index, failure)
