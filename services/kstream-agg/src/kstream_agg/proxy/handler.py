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

from confluent_kafka import KafkaException

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.outcomes import Answer, Failure, failure_of, refusal
from kstream_agg.proxy.pushing import AwaitedRecord, PushInProgress
from kstream_agg.proxy.requests import MalformedBodyError, decode_push
from kstream_agg.proxy.resending import LoggedRecord
from kstream_agg.proxy.room import AWAY, WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confluent_kafka import KafkaError, Message

    from kstream_agg.core.clock import Clock
    from kstream_agg.proxy.access import Access
    from kstream_agg.proxy.journal import Journal
    from kstream_agg.proxy.limits import Limits
    from kstream_agg.proxy.outbox import Outbox
    from kstream_agg.proxy.schemas import AvroEncoders
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
    max_record_bytes: int
    queue_wait_s: float
    as_reference: bool


@dataclass(frozen=True, slots=True)
class HandlerParts:
    """What the handler works with."""

    outbox: Outbox
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
        journal: The log; None accepts into memory only, as the reference did.
    """

    def __init__(
        self, parts: HandlerParts, rules: HandlerRules, journal: Journal | None = None
    ) -> None:
        self._parts = parts
        self._rules = rules
        self.journal = journal
        self._outbox = parts.outbox
        self._produce = parts.outbox.produce
        self._known = parts.topics.known
        self._all_topics = parts.topics.tallies
        self._limited_topics = parts.limits.topics
        self._monotonic = parts.clock.monotonic
        self._room = WaitingRoom(self._outbox, rules.queue_wait_s, self._send_directly, self._fail)
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
        request = PushInProgress(decoded, started, respond, self._finished)
        request.as_reference = self._rules.as_reference
        request.report = self.report
        failure = self._admit_client(request, headers, address)
        if failure is not None:
            self.refuse(failure, respond, wait=decoded.wait, started=started, request=request)
            return
        self.in_progress += 1
        request.traceparent, request.span = self._parts.tracing.begin(headers.get(b"traceparent"))
        known = self._known
        if decoded.schemas or any(record.topic not in known for record in decoded.records):
            task = asyncio.ensure_future(self._prepare(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._send(request)

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
        if self.journal is not None and not push.wait:
            self._send_logged(request, good)
        elif self._outbox.away:
            self._fail(request, good, AWAY)
        elif self._room.is_occupied:
            self._room.enter(request, good)
        else:
            self._send_directly(request, good)

    def _send_directly(self, request: PushInProgress, indexes: Sequence[int]) -> None:
        """Hand records to librdkafka; with a full queue the rest waits for room."""
        push = request.push
        settled = 0
        for place, index in enumerate(indexes):
            record = push.records[index]
            callback = AwaitedRecord(request, index) if push.wait else self.report
            try:
                self._produce(
                    record.topic,
                    record.data,
                    record.key,
                    -1 if record.partition is None else record.partition,
                    on_delivery=callback,
                    timestamp=record.timestamp or 0,
                    headers=self._headers(request, record),
                )
            except BufferError:
                request.left -= settled
                self._room.enter(request, indexes[place:])
                return
            except KafkaException as error:
                request.failures[index] = failure_of(error.args[0], record.topic)
                settled += 1
            else:
                self._all_topics[record.topic].sent += 1
                settled += not push.wait
        self._outbox.poll_soon()
        if settled:
            request.settle_many(settled)

    def _send_logged(self, request: PushInProgress, indexes: Sequence[int]) -> None:
        """Give records to the log and, while Kafka is there, to librdkafka."""
        journal = self.journal
        assert journal is not None  # noqa: S101 - the caller has looked
        away = self._outbox.away
        if away and journal.is_full:
            self._fail(request, indexes, _LOG_FULL)
            return
        now_ms = self._parts.clock.now_ms()
        for index in indexes:
            record = request.push.records[index]
            logged = LoggedRecord(
                record.topic,
                record.data,
                record.key,
                -1 if record.partition is None else record.partition,
                record.timestamp or now_ms,
                self._headers(request, record),
            )
            if away and logged.size > self._rules.max_record_bytes:
                request.settle(index, _too_large(record.topic, self._rules.max_record_bytes))
                continue
            entry = journal.entry(logged, index, request.settle)
            if away:
                continue
            try:
                self.send_logged(logged, entry)
            except BufferError:
                continue  # the log has it, and sends it when there is room
            except KafkaException as error:
                entry.done = True
                entry.answer(failure_of(error.args[0], record.topic))
            else:
                entry.flying = True
        self._outbox.poll_soon()

    def send_logged(
        self, record: LoggedRecord, callback: Callable[[KafkaError | None, Message], None]
    ) -> None:
        """Hand a record of the log to librdkafka.

        Raises:
            BufferError: Its queue is full.
            KafkaException: It refuses the record.
        """
        self._produce(
            record.topic,
            record.value,
            record.key,
            record.partition,
            on_delivery=callback,
            timestamp=record.timestamp,
            headers=record.headers,
        )
        topic = self._all_topics.get(record.topic)
        if topic is not None:
            topic.sent += 1
        self._outbox.poll_soon()

    def _headers(self, request: PushInProgress, record: Any) -> list[Any]:  # noqa: ANN401 - as above
        if not record.headers:
            return [("traceparent", request.traceparent)]
        given = record.headers
        pairs = list(given.items() if isinstance(given, dict) else given)
        if not any(name == "traceparent" for name, _value in pairs):
            pairs.append(("traceparent", request.traceparent))
        return pairs

    # --- ends ------------------------------------------------------------------------------

    def _fail(self, request: PushInProgress, indexes: Sequence[int], failure: Failure) -> None:
        for index in indexes:
            request.failures[index] = failure
        request.settle_many(len(indexes))

    def report(self, error: KafkaError | None, message: Message) -> None:
        """Count a delivery report in its topic's numbers."""
        topic = self._all_topics.get(message.topic() or "")
        if topic is not None:
            topic.reported(message.latency() or 0.0, None if error is None else error.code())
        if error is None and self._outbox.away:
            self._outbox.seen()

    def _finished(self, request: PushInProgress, status: int) -> None:
        self.in_progress -= 1
        self._parts.tallies.answered(
            _METHODS[request.push.wait], status, self._monotonic() - request.started
        )
        if request.span is not None:
            self._parts.tracing.end(request.span, request.push.records, status)


def _too_large(topic: str, limit: int) -> Failure:
    return Failure(413, f"the record for topic '{topic}' is larger than {limit} bytes")
