"""Getting a sink past a row that its database refuses.

1. Let the sink go by small steps (`sinks.narrowing`), and stop it: no failed task of before is left
   to be taken for a new one.
2. Resume it, and wait until it fails again; then the same with one row a step. Where it gets past
   what it failed on, nothing is wrong any more: 6.
3. Stop it. The offset it has committed for the partition at fault is that of the row at fault; for
   each other partition it is that of a row it has yet to write.
4. Ask the database about the next row of each partition. Only what it refuses, with an SQLSTATE of
   class 22 or 23, is at fault.
5. Write a dead letter for each such row, unless there is one; then move the sink's offset past it.
6. Resume it, and give it its configuration back.

Every step can be done again, and the configuration says that a rescue is under way: one that is
ended anywhere is begun again from 1.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from kstream_agg.core.errors import ContractError, InvalidRecordError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.dead_letters import Place
from kstream_agg.kafka.topic_reader import Span
from kstream_agg.sinks.letters import RefusedRow
from kstream_agg.sinks.narrowing import is_narrowed, narrowed, records_at_once, widened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kstream_agg.core.clock import Clock
    from kstream_agg.kafka.topic_reader import Record, TopicPart, TopicReader
    from kstream_agg.kafka.wire import RecordDecoder
    from kstream_agg.sinks.connect_api import ConnectClient, ConnectorStatus
    from kstream_agg.sinks.connectors import Sink
    from kstream_agg.sinks.letters import KnownLetters, LetterBox
    from kstream_agg.sinks.patience import Patience
    from kstream_agg.sinks.probe import Refusal
    from kstream_agg.sinks.tables import Table

__all__ = ["Outcome", "Rescue", "RescueTools", "Rows", "Verdict"]

_log = get_logger(__name__)

T = TypeVar("T")

# Small enough to be written soon after the step at fault is known; large enough to be quick.
_SMALL_STEP: Final = 100
# The sink commits every few seconds only, and Connect makes a client to answer.
_LOOKS_AN_OFFSET: Final = 10


class Rows(Protocol):
    """Says whether the database would take a row."""

    def refusal(self, table: Table, record: Mapping[str, Any]) -> Refusal | None:
        """See `sinks.probe.RowProbe`."""


@enum.unique
class Verdict(enum.Enum):
    """How a rescue ended."""

    SET_ASIDE = "rows set aside"
    PASSED = "it got past by itself"
    NO_ROW = "no row is at fault"
    LIMIT = "too many rows in an hour"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rescue has come to.

    Attributes:
        verdict: How it ended.
        rows: Where the rows that were set aside stand.
        reason: Why the sink failed, as Connect says.
    """

    verdict: Verdict
    rows: tuple[Place, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RescueTools:
    """What a rescue works with.

    Attributes:
        client: Kafka Connect.
        reader: Reads the sink's topics and its dead letters.
        decoder: Decodes their records.
        rows: Asks the database.
        patience: Makes a bounded wait, for one step.
        clock: Dates the last hour.
        count: Counts a step of a connector.
        rows_per_hour: So many rows of a sink are set aside in an hour at most.
    """

    client: ConnectClient
    reader: TopicReader
    decoder: RecordDecoder
    rows: Rows
    patience: Callable[[], Patience]
    clock: Clock
    count: Callable[[str, str], None]
    rows_per_hour: int


class Rescue:
    """Rescues one sink.

    Args:
        sink: The sink.
        letters: Its dead-letter topic.
        tools: What it works with.
    """

    def __init__(self, sink: Sink, letters: LetterBox, tools: RescueTools) -> None:
        self._sink = sink
        self._name = sink.name
        self._letters = letters
        self._tools = tools
        self._client = tools.client

    def run(self) -> Outcome:
        """See the module's docstring.

        Raises:
            UnavailableError: Kafka, Connect, the registry or the database cannot answer now; the
                next run goes on.
            ContractError: Connect or the database refuse what was asked of them.
        """
        config = self._config()
        known = self._letters.known(self._tools.reader)
        within_hour = known.refused_within_hour(self._tools.clock.now_ms())
        if within_hour >= self._tools.rows_per_hour:
            if is_narrowed(config):
                self._release()
            return Outcome(Verdict.LIMIT)
        failed = None
        for at_once in _steps(records_at_once(widened(config))):
            # 1.
            self._step("narrow", records=at_once)
            config = self._config()
            goals = self._goals(records_at_once(config))
            self._ask(partial(self._client.put_config, self._name, narrowed(config, at_once)))
            self._stop()
            # 2.
            self._step("resume")
            self._ask(partial(self._client.resume, self._name))
            failed = self._run(goals)
            if failed is None:
                self._release()
                return Outcome(Verdict.PASSED)
        # 3.
        self._stop()
        # 4. and 5.
        at_fault = self._at_fault(self._letters.known(self._tools.reader))
        at_fault = at_fault[: self._tools.rows_per_hour - within_hour]
        if at_fault:
            self._set_aside(at_fault)
        # 6.
        self._release()
        verdict = Verdict.SET_ASIDE if at_fault else Verdict.NO_ROW
        reason = failed.failure if failed else None
        return Outcome(verdict, tuple(_place(row.record) for row in at_fault), reason)

    def _stop(self) -> None:
        self._step("stop")
        self._ask(partial(self._client.stop, self._name))
        self._wait("stopped", lambda status: status.is_stopped)

    def _release(self) -> None:
        # Resumed first: stopped with its own configuration, it would look as if somebody meant it.
        self._step("resume")
        self._ask(partial(self._client.resume, self._name))
        # As it is by now: somebody may have applied another one meanwhile.
        config = self._config()
        if is_narrowed(config):
            self._step("restore")
            self._ask(partial(self._client.put_config, self._name, widened(config)))

    def _config(self) -> dict[str, str]:
        found = self._ask(partial(self._client.config, self._name))
        if found is None:
            raise ContractError(f"Connect knows no connector {self._name}")
        return found

    def _stands(self) -> dict[TopicPart, Span]:
        """What the sink has yet to write, by what it has committed."""
        offsets = self._ask(partial(self._client.offsets, self._name))
        spans = self._tools.reader.spans(self._sink.topics)
        return {
            part: Span(max(span.begin, offsets.get(part, span.begin)), span.end)
            for part, span in spans.items()
        }

    def _goals(self, at_once: int) -> dict[TopicPart, int]:
        """Offsets by which the sink is past the attempt it failed on."""
        return {part: min(span.begin + at_once, span.end) for part, span in self._stands().items()}

    def _run(self, goals: dict[TopicPart, int]) -> ConnectorStatus | None:
        """The status with a failed task; None when it got past the goals or runs on and on."""
        patience = self._tools.patience()
        looks = 0
        while True:
            status = self._ask(partial(self._client.status, self._name))
            if status.failed_tasks:
                return status
            if status.state == "FAILED":
                raise ContractError(f"connector {self._name} does not start: {status.failure}")
            if patience.stop.is_set():
                raise UnavailableError("ended while a sink went by small steps")
            looks += 1
            if patience.is_over or (looks % _LOOKS_AN_OFFSET == 0 and self._is_past(goals)):
                return None
            patience.pause()

    def _is_past(self, goals: dict[TopicPart, int]) -> bool:
        offsets = self._ask(partial(self._client.offsets, self._name))
        return all(offsets.get(part, 0) >= goal for part, goal in goals.items())

    def _at_fault(self, known: KnownLetters) -> list[RefusedRow]:
        """The partitions' next rows, as far as the database refuses them."""
        self._step("ask")
        tables = dict(zip(self._sink.topics, self._sink.tables, strict=True))
        found = []
        for part, span in sorted(self._stands().items()):
            if span.begin >= span.end:
                continue
            following = self._next_row(part, span, known)
            if following is None:
                continue
            record, fields = following
            refusal = self._tools.rows.refusal(tables[part.topic], fields)
            if refusal is not None:
                found.append(RefusedRow(record, refusal))
        return found

    def _next_row(
        self, part: TopicPart, span: Span, known: KnownLetters
    ) -> tuple[Record, dict[str, Any]] | None:
        """The next record that the sink makes a row of, decoded.

        Records without a value make none, and the sink commits nothing behind those its converter
        could not read. Only where one of these has its dead letter has the sink been there: what
        follows one that has none is not looked at.
        """
        decoded: dict[str, Any] = {}

        def is_row(record: Record) -> bool:
            if record.value is None:
                return False
            try:
                decoded.update(self._tools.decoder.decode(record.value))
            except InvalidRecordError:
                return _place(record) not in known.places
            return True

        record = self._tools.reader.first(part, span, is_row)
        return (record, decoded) if record is not None and decoded else None

    def _set_aside(self, rows: list[RefusedRow]) -> None:
        for row in rows:
            _log.warning(
                "the database refuses a row",
                connector=self._name,
                place=str(_place(row.record)),
                error=row.refusal.error_class,
                sqlstate=row.refusal.sqlstate,
                message=row.refusal.message,
            )
        self._step("write_letters")
        patience = self._tools.patience()
        self._letters.write_once(rows, self._tools.reader, patience.stop)
        self._step("move_offset")
        past = {row.record.part: row.record.offset + 1 for row in rows}
        self._ask(partial(self._client.alter_offsets, self._name, past))

    def _wait(self, what: str, is_so: Callable[[ConnectorStatus], bool]) -> None:
        patience = self._tools.patience()
        while not is_so(self._ask(partial(self._client.status, self._name))):
            if patience.is_over:
                raise UnavailableError(f"connector {self._name} is not {what} in time")
            patience.pause()

    def _step(self, step: str, **about: int) -> None:
        _log.info("sink rescue", connector=self._name, step=step, **about)
        self._tools.count(self._name, step)

    def _ask(self, attempt: Callable[[], T]) -> T:
        # Connect answers 409 while its workers rebalance, and 500 while a task leaves its group.
        return self._tools.patience().until_available("Kafka Connect", attempt)


def _steps(at_once: int) -> tuple[int, ...]:
    return (_SMALL_STEP, 1) if at_once > _SMALL_STEP else (1,)


def _place(record: Record) -> Place:
    return Place(record.part.topic, record.part.partition, record.offset)
