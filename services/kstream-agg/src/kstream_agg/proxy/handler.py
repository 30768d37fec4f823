"""`POST /push`: from a body to records on their way to Kafka, and from their outcomes to an answer.

A request goes through these steps; the first that fails ends it for the whole request (1, 2) or
for single records (3 to 5), whose neighbours go on:

1. read the body (400), find out whose key it carries (401);
2. count it against the client's limit (429);
3. find the topics (404, 403), check partitions (422) and the topics' limits (429);
4. encode what has a schema (422);
5. hand the records to librdkafka, all at once: 413, or 503 while Kafka is away or the queue full.

A request that waits is answered when Kafka has reported on every record. One that does not wait is
answered when the log has charge of its records (`journal`), or without a log as soon as librdkafka
has taken them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.outcomes import OK, Answer, Failure, answer, failure_of, refusal
from kstream_agg.proxy.pushing import PushInProgress
from kstream_agg.proxy.requests import MalformedBodyError, decode_push

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confluent_kafka import KafkaError, Message

    from kstream_agg.core.clock import Clock
    from kstream_agg.proxy.access import Access
    from kstream_agg.proxy.limits import Limits
    from kstream_agg.proxy.requests import Decoded
    from kstream_agg.proxy.schemas import AvroEncoders
    from kstream_agg.proxy.sending import Sender
    from kstream_agg.proxy.tallies import Tallies, TopicTally
    from kstream_agg.proxy.topics import Topics
    from kstream_agg.proxy.tracing import Tracing

__all__ = ["Handler", "HandlerParts", "HandlerRules"]

_log = get_logger(__name__)

# The reference's text calls requests that do not wait `push/sync`, those that do `push/async`.
_METHODS: Final = {False: "push/sync", True: "push/async"}
_LOG_FULL: Final = Failure(503, "the log is full and Kafka is away: try again later", 5)
_RATE_LIMITED: Final = "ratelimit: topic '{}' takes no more records now"


@dataclass(frozen=True, slots=True)
class HandlerRules:
    """The settings the handler goes by."""

    max_records: int
    as_reference: bool


@dataclass(frozen=True, slots=True)
class HandlerParts:
    """What the handler works with."""

    sender: Sender
    topics: Topics
    tallies: Tallies
    access: Access
    limits: Limits
    encoders: AvroEncoders
    tracing: Tracing
    clock: Clock


class Handler:
    """Serves `POST /push` for one worker; call from its event loop.

    Args:
        parts: What it works with.
        rules: What it goes by.
    """

    def __init__(self, parts: HandlerParts, rules: HandlerRules) -> None:
        self._parts = parts
        self._rules = rules
        self.sender = parts.sender
        self._known = parts.topics.known
        self._limited_topics = parts.limits.topics
        self._monotonic = parts.clock.monotonic
        self._begin_trace = parts.tracing.begin
        self._count_answer = parts.tallies.answered
        # Without keys and limits a single record needs no more than a look for its topic.
        self._is_plain = (
            parts.access.is_open and parts.limits.client is None and not self._limited_topics
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.in_progress = 0
        """Requests that are not answered yet."""

    # --- steps 1 and 2 ---------------------------------------------------------------------

    def push(
        self,
        body: bytes,
        headers: Mapping[bytes, bytes],
        address: str,
        respond: Callable[[Answer], None],
    ) -> None:
        """Serve one request.

        Args:
            body: Its body.
            headers: Its headers, names in lower case.
            address: The client's address.
            respond: Called once with the answer, now or later.
        """
        started = self._monotonic()
        try:
            decoded = decode_push(body)
        except MalformedBodyError as error:
            self.refuse(Failure(400, str(error)), respond, started=started)
            return
        if self._is_plain and len(decoded.records) == 1:
            one = _One(self, decoded.wait, started, respond)
            if self._push_one(decoded, headers, one):
                return
        request = PushInProgress(decoded, started, respond, self._finished)
        request.as_reference = self._rules.as_reference
        request.report = self.sender.report
        failure = self._admit_client(request, headers, address)
        if failure is not None:
            self.refuse(failure, respond, wait=decoded.wait, started=started, request=request)
            return
        self.in_progress += 1
        request.traceparent, request.span = self._parts.tracing.begin(headers.get(b"traceparent"))
        known = self._known
        for record in decoded.records:
            if record.topic not in known:
                break
        else:
            if not decoded.schemas:
                self._send(request)
                return
        task = asyncio.ensure_future(self._prepare(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _push_one(self, decoded: Decoded, headers: Mapping[bytes, bytes], one: _One) -> bool:
        """The short way of what most clients send: one plain record.

        Returns:
            Whether it is on its way; what is not this simple goes the long way.
        """
        (record,) = decoded.records
        if (
            record.topic not in self._known
            or decoded.failures
            or decoded.schemas
            or record.partition is not None
            or record.headers
            or not self.sender.is_free
            or self._parts.tracing.is_sampled(headers)
        ):
            return False
        traceparent, _span = self._begin_trace(headers.get(b"traceparent"))
        sender = self.sender
        self.in_progress += 1
        if one.wait:
            taken = sender.send_one(record, traceparent, one)
        elif sender.journal is not None:
            sender.log_one(sender.journal, record, traceparent, one.settle)
            return True
        else:
            taken = sender.send_one(record, traceparent, sender.report)
            if taken:
                one.settle(0, None)
        if not taken:
            self.in_progress -= 1
        return taken

    def finish_one(self, one: _One, failure: Failure | None) -> None:
        """Answer a request of one record."""
        self.in_progress -= 1
        made = OK
        if failure is not None:
            as_reference = self._rules.as_reference
            made = answer(1, {0: failure}, waited=one.wait, as_reference=as_reference)
        took = self._monotonic() - one.started
        self._count_answer(_METHODS[one.wait], made.status, took)
        one.respond(made)

    def refuse(
        self,
        failure: Failure,
        respond: Callable[[Answer], None],
        *,
        wait: bool = False,
        started: float | None = None,
        request: PushInProgress | None = None,
    ) -> None:
        """Answer a request that failed as a whole."""
        made = refusal(failure)
        if request is not None and request.headers:
            made = Answer(made.status, made.body, made.headers + request.headers)
        took = 0.0 if started is None else self._monotonic() - started
        self._parts.tallies.answered(_METHODS[wait], made.status, took)
        respond(made)

    def _admit_client(
        self, request: PushInProgress, headers: Mapping[bytes, bytes], address: str
    ) -> Failure | None:
        count = len(request.push.records)
        if count > self._rules.max_records:
            return Failure(413, f"{count} records in a request, {self._rules.max_records} may be")
        access = self._parts.access
        who = address
        if not access.is_open:
            client = access.client(headers.get(b"authorization"), headers.get(b"x-api-key"))
            if isinstance(client, Failure):
                return client
            request.client = client
            who = client.name
        limits = self._parts.limits
        if limits.client is None:
            return None
        verdict = limits.take_client(who, max(1, count), self._parts.clock.now_ms() / 1000)
        request.headers = limits.client_headers(verdict)
        if verdict.allowed:
            return None
        self._parts.tallies.count("push_proxy_client_limited_requests")
        return Failure(429, "ratelimit: too many records from this client", verdict.wait_s)

    # --- steps 3 and 4 ---------------------------------------------------------------------

    async def _prepare(self, request: PushInProgress) -> None:
        """Look up what is not known yet, encode what has a schema, then send."""
        push = request.push
        for name in {record.topic for record in push.records}:
            found: TopicTally | Failure | None = None
            if request.client is not None:
                found = request.client.refused(name)
            if found is None:
                found = await self._parts.topics.find(name)
            if isinstance(found, Failure):
                for index, record in enumerate(push.records):
                    if record.topic == name:
                        push.failures.setdefault(index, found)
        for index, schema in push.schemas.items():
            if index in push.failures:
                continue
            record = push.records[index]
            made = await asyncio.to_thread(self._parts.encoders.encode, schema, record.data)
            if isinstance(made, Failure):
                push.failures[index] = made
            else:
                record.data = made
        self._send(request)

    def _check(self, request: PushInProgress, record: Any) -> Failure | None:  # noqa: ANN401 - one of two record types, see requests
        if request.client is not None:
            failure = request.client.refused(record.topic)
            if failure is not None:
                return failure
        topic = self._known.get(record.topic)
        if topic is None:
            return Failure(404, f"topic '{record.topic}' does not exist")
        if record.partition is not None and record.partition >= topic.partitions:
            return Failure(
                404,
                f"partition: topic '{topic.name}' has no partition {record.partition}, it has "
                f"{topic.partitions}",
            )
        if record.topic in self._limited_topics:
            verdict = self._parts.limits.topic(record.topic, self._parts.clock.now_ms() / 1000)
            if not verdict.allowed:
                topic.limited += 1
                return Failure(429, _RATE_LIMITED.format(topic.name), verdict.wait_s)
        return None

    # --- step 5 ----------------------------------------------------------------------------

    def _send(self, request: PushInProgress) -> None:
        push = request.push
        count = len(push.records)
        failures = push.failures
        good: Sequence[int] = range(count)
        for index, record in enumerate(push.records):
            if index not in failures:
                failure = self._check(request, record)
                if failure is not None:
                    failures[index] = failure
        if failures:
            good = [index for index in range(count) if index not in failures]
        if not good:
            request.complete()
            return
        if count != len(good):
            request.left = len(good)
        self.sender.send(request, good)

    def _finished(self, request: PushInProgress, status: int) -> None:
        self.in_progress -= 1
        self._parts.tallies.answered(
            _METHODS[request.push.wait], status, self._monotonic() - request.started
        )
        if request.span is not None:
            self._parts.tracing.end(request.span, request.push.records, status)


@dataclass(slots=True)
class _One:
    """A request of one record; librdkafka calls it with the delivery report it waits for."""

    handler: Handler
    wait: bool
    started: float
    respond: Callable[[Answer], None]

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self.handler.sender.report(error, message)
        failure = None if error is None else failure_of(error, message.topic() or "")
        self.handler.finish_one(self, failure)

    def settle(self, index: int, failure: Failure | None) -> None:
        del index
        self.handler.finish_one(self, failure)
