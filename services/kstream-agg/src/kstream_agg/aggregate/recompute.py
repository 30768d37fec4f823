"""Windows that the aggregator keeps no longer, emitted again from the raw topic.

    1. The transactional id is taken over: what an earlier run left open is aborted, and one that
       still runs can commit nothing any more.
    2. The aggregator's changelog says how far back it keeps windows. Those it still owns are
       refused: it emits them itself when late trades come, and it alone knows their revision.
    3. The records that stand in the output topics are read.
    4. The raw topic is read from its beginning to its end of now.
    5. What differs from what stands is written with the next revision, in transactions.

A window is written by one side only at any time: the horizon behind which the aggregator has
dropped its windows only moves on. So the revision read in step 3 is the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.aggregate.agg_producer import average_topics
from kstream_agg.aggregate.changelog import Changelog
from kstream_agg.aggregate.intake import Instruments, TradeReader
from kstream_agg.aggregate.kept import note_in
from kstream_agg.aggregate.outputs import TopicOutputs
from kstream_agg.aggregate.recomputation import Recomputation, WindowId, is_same
from kstream_agg.aggregate.state import Result
from kstream_agg.core.errors import ContractError, InvalidRecordError
from kstream_agg.core.names import changelog_topic
from kstream_agg.core.schemas import AVERAGE
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.topic_reader import TopicPart, TopicReader
from kstream_agg.kafka.transactions import TransactionWriter
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.pipeline.processor import Partition
from kstream_agg.pipeline.spans import BatchSpans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kstream_agg.aggregate.kept import Note
    from kstream_agg.aggregate.recomputation import Wanted
    from kstream_agg.aggregate.rules import WindowRules
    from kstream_agg.aggregate.settings import AggProducerSettings
    from kstream_agg.core.service import ServiceContext

__all__ = ["Outcome", "recompute"]

_Records = dict[WindowId, dict[str, Any]]

# A run that is killed leaves its transaction open for so long at most, and readers of the
# averages wait for it.
_TIMEOUT_MS: Final = 60_000
_COMMIT_EVERY: Final = 20_000  # windows; bounds what a transaction holds and how long it is open


@dataclass(slots=True)
class Outcome:
    """What became of the windows of one output topic.

    Args:
        topic: Its name.
        written: Windows that were emitted again.
        same: Windows whose record says what their trades make.
        lacking: Windows whose trades do not all stand in the raw topic any more; left as they are.
    """

    topic: str
    written: int = 0
    same: int = 0
    lacking: int = 0

    @property
    def windows(self) -> int:
        """All of them."""
        return self.written + self.same + self.lacking


def recompute(
    settings: AggProducerSettings,
    ctx: ServiceContext,
    raw_topic: str,
    wanted: Wanted,
    on_progress: Callable[[int, int], None],
) -> list[Outcome] | None:
    """Emit the windows of a period again whose records are not what the raw topic makes of them.

    Args:
        settings: The aggregator's: they must be those it runs with.
        ctx: Metrics, traces, and the event that ends it early.
        raw_topic: One of the settings' raw topics.
        wanted: Which windows.
        on_progress: Told how many records of the raw topic have been read, of how many at most.

    Returns:
        What became of them, for each output topic; None when asked to stop: what was committed
        until then stands, and the next call goes on from there.

    Raises:
        ContractError: The aggregator has no state, one of other settings, or still owns windows
            of the period.
        DeliveryError: Kafka did not take the records, or another recomputation has begun.
        UnavailableError: Kafka or the registry does not answer.
    """
    _check_topics(settings, raw_topic)
    kafka = settings.kafka
    timeouts = {"transaction.timeout.ms": _TIMEOUT_MS, "delivery.timeout.ms": _TIMEOUT_MS}
    patient = kafka.model_copy(update={"properties": timeouts | kafka.properties})
    writer = TransactionWriter(patient, ctx.metrics, ctx.name, f"{settings.group_id}-recompute")
    if not writer.start(ctx.stop):  # 1.
        return None
    with SchemaRegistry(settings.registry) as registry, TopicReader(kafka, ctx.name) as reader:
        run = _Run(settings, ctx, raw_topic, wanted, registry, reader)
        horizons = run.read_horizons()  # 2.
        standing = run.read_standing()  # 3.
        made = run.read_trades(horizons, standing, on_progress)  # 4.
        if made is None:
            return None
        run.judge(made, standing)
        return run.outcomes if run.write(made, standing, writer) else None  # 5.


def _check_topics(settings: AggProducerSettings, raw_topic: str) -> None:
    cluster = KafkaCluster(settings.kafka, "recompute")
    known = cluster.topics()
    changelog = changelog_topic(settings.group_id, raw_topic)
    for topic in (raw_topic, changelog, *average_topics(raw_topic, settings)):
        if topic not in known:
            raise ContractError(
                f"there is no topic '{topic}'",
                remedy="recompute mends what an aggregator has emitted: has it run, with these "
                "settings (group_id, channels, window)?",
            )


@dataclass(slots=True)
class _Made:
    """The windows of one partition."""

    partition: Partition
    records: _Records


class _Run:
    """One recomputation of one raw topic."""

    def __init__(  # noqa: PLR0913, PLR0917 - private, called once
        self,
        settings: AggProducerSettings,
        ctx: ServiceContext,
        raw_topic: str,
        wanted: Wanted,
        registry: SchemaRegistry,
        reader: TopicReader,
    ) -> None:
        self._settings = settings
        self._rules = settings.rules
        self._ctx = ctx
        self._raw_topic = raw_topic
        self._wanted = wanted
        self._registry = registry
        self._reader = reader
        self._topics = average_topics(raw_topic, settings)
        spans = reader.spans([raw_topic])
        self._spans = {part.partition: span for part, span in spans.items()}
        self._lacking: set[WindowId] = set()
        self.outcomes = [Outcome(topic) for topic in self._topics]

    # --- 2. ------------------------------------------------------------------------------------

    def read_horizons(self) -> dict[int, int | None]:
        """How far back each partition's windows are kept (ms); None where nothing was read yet."""
        settings = self._settings
        changelog = Changelog(settings.kafka, settings.group_id, self._ctx.name, _NoSink())
        kept = changelog.read([Partition(self._raw_topic, number) for number in self._spans])
        return {
            partition.number: self._horizon(note_in(content)) for partition, content in kept.items()
        }

    def _horizon(self, note: Note | None) -> int | None:
        if note is None:
            return None
        if note.fingerprint != self._rules.fingerprint:
            raise ContractError(
                f"the aggregator '{self._settings.group_id}' works with other windows or averages "
                "than these settings say",
                remedy="use the settings that it runs with; after a change of them, let it start "
                "first",
            )
        return note.horizon

    # --- 3. ------------------------------------------------------------------------------------

    def read_standing(self) -> _Records:
        """The newest record of each wanted window."""
        decoder = RecordDecoder(self._registry.schema_by_id, AVERAGE)
        found: _Records = {}
        for index, topic in enumerate(self._topics):
            for _, messages in self._reader.batches(self._reader.spans([topic])):
                for message in messages:
                    window_id = self._window_of(index, message.key())
                    if window_id is not None:
                        _note(found, window_id, decoder, message.value())
        return found

    def _window_of(self, family: int, key: object) -> WindowId | None:
        """The wanted window that a record's key names."""
        if not isinstance(key, bytes):
            return None
        name, _, start = key.decode("utf-8", "replace").rpartition("|")
        if not start.lstrip("-").isdecimal() or not self._wanted.names(name):
            return None
        start_ms = int(start)
        has = self._wanted.has(start_ms, self._rules.families[family].period_ms)
        return WindowId(family, name, start_ms) if has else None

    # --- 4. ------------------------------------------------------------------------------------

    def read_trades(
        self,
        horizons: Mapping[int, int | None],
        standing: _Records,
        on_progress: Callable[[int, int], None],
    ) -> list[_Made] | None:
        """The wanted windows, made again; None when asked to stop."""
        instruments = Instruments()
        trades_of = TradeReader(self._registry.schema_by_id, instruments, self._settings.groups)
        states = {
            number: Recomputation(self._rules, self._wanted, instruments, standing)
            for number in self._spans
        }
        spans = {TopicPart(self._raw_topic, number): span for number, span in self._spans.items()}
        read, total = 0, sum(span.end - span.begin for span in spans.values())
        for part, messages in self._reader.batches(spans):
            if self._ctx.stop.is_set():
                return None
            states[part.partition].apply(trades_of.read(messages)[0])
            read += len(messages)
            on_progress(read, total)
        on_progress(total, total)
        return [self._take(number, state, horizons.get(number)) for number, state in states.items()]

    def _take(self, number: int, state: Recomputation, horizon: int | None) -> _Made:
        records = dict(state.records())
        _refuse_owned(self._rules, self._raw_topic, number, horizon, records)
        if self._spans[number].begin > 0 and state.oldest_ms is not None:
            oldest_ms = state.oldest_ms
            self._lacking |= {item for item in records if item.start_ms <= oldest_ms}
        return _Made(Partition(self._raw_topic, number), records)

    # --- 5. ------------------------------------------------------------------------------------

    def judge(self, made: list[_Made], standing: _Records) -> None:
        """Keep in `made` only what is to be written; count the others."""
        without_trades = standing.keys() - {item for part in made for item in part.records}
        for window_id in without_trades:
            self.outcomes[window_id.family].lacking += 1
        for part in made:
            for window_id, record in list(part.records.items()):
                old, outcome = standing.get(window_id), self.outcomes[window_id.family]
                if old is not None and is_same(record, old):
                    outcome.same += 1
                elif window_id in self._lacking or (
                    old is not None and record["trade_count"] < old["trade_count"]
                ):
                    outcome.lacking += 1
                else:
                    continue
                del part.records[window_id]

    def write(self, made: list[_Made], standing: _Records, writer: TransactionWriter) -> bool:
        """Write them, each with the next revision; False when asked to stop."""
        averages = [
            (topic, self._registry.register_value(topic, AVERAGE)) for topic in self._topics
        ]
        outputs = TopicOutputs(self._raw_topic, averages, _Sink(writer), self._ctx.metrics)
        for part in made:
            spans = BatchSpans(self._ctx.telemetry.tracer, part.partition)
            for results in _chunks(part.records, standing):
                traceparent = spans.traceparent("recompute_windows")
                outputs.write_results(results, traceparent)
                writer.commit(lambda: not self._ctx.stop.is_set())
                for result in results:
                    self.outcomes[result.family].written += 1
                if self._ctx.stop.is_set():
                    return False
            spans.end()
        return True


def _chunks(records: _Records, standing: _Records) -> Iterator[list[Result]]:
    results: list[Result] = []
    for window_id, record in sorted(records.items()):
        old = standing.get(window_id)
        record["revision"] = old["revision"] + 1 if old is not None else 0
        results.append(Result(window_id.family, record))
        if len(results) >= _COMMIT_EVERY:
            yield results
            results = []
    if results:
        yield results


def _refuse_owned(
    rules: WindowRules, raw_topic: str, number: int, horizon: int | None, records: _Records
) -> None:
    """Raise when the aggregator may still emit one of the windows."""
    if not records:
        return
    if horizon is None:
        raise ContractError(
            f"the aggregator has not read partition {number} of '{raw_topic}' yet: it emits these "
            "windows itself",
            remedy="start it, and repeat this when it has passed them by its retention",
        )
    free_to = []
    for index, family in enumerate(rules.families):
        gone = family.last_ended(horizon - rules.grace_ms)
        first_kept_ms = (gone + 1) * family.advance_ms
        if any(item.family == index and item.start_ms >= first_kept_ms for item in records):
            free_to.append(first_kept_ms)
    if free_to:
        raise ContractError(
            f"the aggregator still keeps windows of this period of '{raw_topic}': it counts late "
            "trades there itself and emits those windows again",
            remedy=f"--to {_iso(min(free_to))} or earlier; later times when its watermark is past "
            "them by window.retention",
        )


def _iso(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "the time of its first trades"  # no watermark yet


def _note(found: _Records, window_id: WindowId, decoder: RecordDecoder, value: object) -> None:
    if not isinstance(value, bytes):
        found.pop(window_id, None)
        return
    try:
        found[window_id] = decoder.decode(value)
    except InvalidRecordError as error:
        raise ContractError(
            f"the record of {window_id.instrument} at {_iso(window_id.start_ms)} cannot be read: "
            f"{error}"
        ) from error


class _NoSink:
    """The changelog is only read."""

    def produce(self, *_: object, **__: object) -> None:
        """Refuse."""
        raise NotImplementedError


class _Sink:
    """A transaction, as results are written to it."""

    def __init__(self, writer: TransactionWriter) -> None:
        self._writer = writer

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Any = None,  # noqa: ANN401 - as the writer takes them
        partition: int = -1,
    ) -> None:
        """Add one record; its key decides the partition."""
        del partition
        self._writer.produce(topic, value, key=key, headers=headers)
