"""The reduce steps of the batch-sink: one gathers blocks and makes batches ready, one writes them.

While ClickHouse works on one batch, the next is read, decoded and made ready: a step is a thread.
Written is all of a batch, or all of its rows but those that cannot be. What an insert is refused
for decides:

- for its data: the batch is halved until single rows are refused; these alone go to the error step;
- for its size, or because the server has too much to do: it is tried again, then halved; a row is
  never given up for that;
- because the table is not there any more: it is looked up, or made, again.

Everything else, an answer that does not come included, is no fault of the rows: the batch is kept,
tried again with growing waits, and reading pauses meanwhile.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from kstream_agg.core.errors import (
    InvalidRecordError,
    KStreamError,
    RecordsRefusedError,
    UnavailableError,
)
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import SINK_INSERT_SECONDS, SINK_INSERTS, SINK_ROWS, SINK_WAITING
from kstream_agg.pipeline.steps import Reducer, Shutdown
from kstream_agg.sinks.clickhouse_errors import InsertRefusedError, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.sinks.batch_sink_blocks import Block, Piece
    from kstream_agg.sinks.clickhouse_tables import Prepared, Shape
    from kstream_agg.sinks.rows import Rows

__all__ = ["BatchLimits", "BlockGatherer", "BlockWriter", "Gathered", "TableInserts"]

_log = get_logger(__name__)

_FIRST_WAIT_S: Final = 1.0
# A server that is busy is left alone once; what is too large for good is then halved.
_SIZE_ATTEMPTS: Final = 2


class TableInserts(Protocol):
    """Writes rows of one topic and shape: `clickhouse_tables.Inserts`."""

    table: str

    def prepare(self, pieces: Sequence[Rows]) -> Prepared:
        """Turn rows into a block."""

    def write(self, prepared: Prepared, token: str) -> None:
        """Insert a block."""

    def forget(self) -> None:
        """Look the table up again."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is closed, and what becomes of it.

    Args:
        count: With the block that reaches so many records.
        seconds: So long after its first block.
        bytes: With the block that reaches so many bytes of keys and values.
        on_shutdown: What becomes of an open one.
        retry_max_s: Longest wait between attempts.
    """

    count: int = 10_000
    seconds: float = 1.0
    bytes: int = 64 * 1024 * 1024
    on_shutdown: Shutdown = Shutdown.FLUSH
    retry_max_s: float = 30.0


@dataclass(slots=True)
class _Part:
    """Rows of one topic and shape that are still to be written, in one insert."""

    topic: str
    shape: Shape
    pieces: tuple[Rows, ...]
    places: NDArray[np.int64]
    """For each row its record's place among those of the batch."""
    attempts: int = 0
    prepared: Prepared | None = None
    """Made of it ahead; None: to be made, as for the halves of one that was."""
    name: str | None = None
    """Names its rows, as `_name_rows`; made ahead too."""

    @property
    def rows(self) -> int:
        return len(self.places)

    def slice(self, begin: int, end: int) -> _Part:
        pieces, before = [], 0
        for piece in self.pieces:
            low, high = max(begin - before, 0), min(end - before, piece.height)
            if low < high:
                pieces.append(piece.take(slice(low, high)))
            before += piece.height
        # What has waited once need not wait again at each halving.
        return _Part(self.topic, self.shape, tuple(pieces), self.places[begin:end], self.attempts)


@dataclass(slots=True)
class Gathered:
    """A batch on its way to ClickHouse."""

    todo: list[_Part]
    """What is left to be written, the next last."""
    failed: dict[int, Exception] = field(default_factory=dict)
    """Place of a row in the batch to why it cannot be."""


class BlockGatherer(Reducer["Block", Gathered]):
    """Gathers blocks into batches, and makes what ClickHouse is sent of them.

    Args:
        inserts: Gives what writes rows of a topic and shape; always the same for the same.
        limits: Of a batch.
    """

    def __init__(self, inserts: Callable[[str, Shape], TableInserts], limits: BatchLimits) -> None:
        self.seconds = limits.seconds
        self.on_shutdown = limits.on_shutdown
        self._inserts = inserts
        self._limits = limits
        self._blocks: list[Block] = []
        self._records = self._size = 0

    @property
    def name(self) -> str:
        """What logs and metrics call it."""
        return "batches"

    def add(self, item: Block) -> None:
        """Add a block."""
        self._blocks.append(item)
        self._records += item.records
        self._size += item.size

    def is_full(self) -> bool:
        """Whether count or bytes is reached."""
        return self._records >= self._limits.count or self._size >= self._limits.bytes

    def reset(self) -> None:
        """Discard the batch."""
        self._blocks = []
        self._records = self._size = 0

    def flush(self) -> Gathered:
        """The batch, made ready where that can be done now."""
        batch = Gathered(_parts(self._blocks))
        self.reset()
        for part in batch.todo:
            part.name = _name_rows(part)
            # Whatever it is (a server that is away, a table that does not fit), the writer meets
            # it too, and knows when to try again.
            with contextlib.suppress(Exception):
                part.prepared = self._inserts(part.topic, part.shape).prepare(part.pieces)
        return batch


class BlockWriter(Reducer[Gathered, None]):
    """Writes batches, one after the other.

    Args:
        inserts: Gives what writes rows of a topic and shape; always the same for the same.
        limits: Of a batch.
        clock: Monotonic time is used.
        metrics: Counts rows and inserts.
        on_trouble: Told when something does not answer: what is known of the server may be wrong.
    """

    def __init__(
        self,
        inserts: Callable[[str, Shape], TableInserts],
        limits: BatchLimits,
        clock: Clock,
        metrics: Metrics,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        # The gatherer's, for a batch that waits for the server's return.
        self.on_shutdown = limits.on_shutdown
        self._inserts = inserts
        self._limits = limits
        self._clock = clock
        self._on_trouble = on_trouble
        self._batch: Gathered | None = None
        # Tokens of another run never match: a topic that is read again is written again.
        self._run = uuid.uuid4().hex
        self._wait_s = _FIRST_WAIT_S
        self._not_before: float | None = None
        self._reason = ""
        self._rows = metrics.counter(SINK_ROWS)
        self._outcomes = metrics.counter(SINK_INSERTS)
        self._insert_seconds = metrics.histogram(SINK_INSERT_SECONDS)
        metrics.gauge(SINK_WAITING).set_function(lambda: self._not_before is not None)

    @property
    def name(self) -> str:
        """What logs, metrics and dead letters call it."""
        return "clickhouse"

    def add(self, item: Gathered) -> None:
        """Take a batch."""
        self._batch = item

    def is_full(self) -> bool:
        """With each batch."""
        return self._batch is not None

    def reset(self) -> None:
        """Discard the batch."""
        self._batch = None

    def flush(self) -> None:
        """Write the batch; what was written of it before an outage is not written again.

        Raises:
            UnavailableError: It cannot be written now.
            RecordsRefusedError: All is written but the records that this names.
        """
        if self._not_before is not None and self._clock.monotonic() < self._not_before:
            raise UnavailableError(self._reason)
        batch = self._batch
        if batch is None:
            return
        try:
            while batch.todo:
                self._write(batch.todo, batch.failed)
        except UnavailableError as error:
            self._postpone(error, batch)
            raise
        except Exception as error:
            # Whatever it is, it does not prove a single row bad.
            self._postpone(error, batch)
            raise UnavailableError(str(error) or type(error).__name__) from error
        self._not_before, self._wait_s = None, _FIRST_WAIT_S
        failed = batch.failed
        self.reset()
        if failed:
            first = failed[min(failed)]
            raise RecordsRefusedError(f"{len(failed)} rows cannot be: {first}", failed=failed)

    # --- parts -----------------------------------------------------------------------------

    def _write(self, todo: list[_Part], failed: dict[int, Exception]) -> None:
        """Write the last part of what is to be done, or put its halves in its place."""
        part = todo[-1]
        inserts = self._inserts(part.topic, part.shape)
        prepared = part.prepared = part.prepared or inserts.prepare(part.pieces)
        if prepared.rows:
            part.attempts += 1
            began = self._clock.monotonic()
            try:
                inserts.write(prepared, self._token(part))
            except InsertRefusedError as error:
                self._refused(error, part, inserts, todo, failed)
                return
            self._insert_seconds.observe(self._clock.monotonic() - began)
            self._outcomes.labels("written").inc()
            self._rows.labels(inserts.table).inc(prepared.rows)
        for row, why in prepared.refused.items():
            failed[int(part.places[row])] = why
        todo.pop()

    def _refused(
        self,
        error: InsertRefusedError,
        part: _Part,
        inserts: TableInserts,
        todo: list[_Part],
        failed: dict[int, Exception],
    ) -> None:
        self._outcomes.labels(error.refusal.value).inc()
        if error.refusal is Refusal.MISSING:
            inserts.forget()
            raise UnavailableError(str(error)) from error
        is_size = error.refusal is Refusal.SIZE
        if is_size and (part.rows == 1 or part.attempts < _SIZE_ATTEMPTS):
            raise UnavailableError(str(error)) from error
        todo.pop()
        if part.rows == 1:
            failed[int(part.places[0])] = InvalidRecordError(str(error), stage="clickhouse")
            _log.warning("row refused", table=inserts.table, code=error.code, reason=str(error))
            return
        half = part.rows // 2
        todo += [part.slice(half, part.rows), part.slice(0, half)]

    def _postpone(self, error: Exception, batch: Gathered) -> None:
        """Leave the server alone for a while, longer each time."""
        self._outcomes.labels("unavailable").inc()
        self._on_trouble()
        for part in batch.todo:
            # The table may be another one by then.
            part.prepared = None
        self._reason = str(error)
        self._not_before = self._clock.monotonic() + self._wait_s
        if not isinstance(error, KStreamError) and self._wait_s == _FIRST_WAIT_S:
            _log.error("a batch cannot be written, it is kept", exc_info=error)
        else:
            _log.warning("insert failed, trying again", reason=str(error), wait_s=self._wait_s)
        self._wait_s = min(2 * self._wait_s, self._limits.retry_max_s)

    def _token(self, part: _Part) -> str:
        """Names the rows of an insert, and this run."""
        part.name = part.name or _name_rows(part)
        return f"{self._run} {part.name}"


def _name_rows(part: _Part) -> str:
    """Topic, and of each partition the first and last offset and how many rows."""
    place = part.shape.place
    spans: dict[object, tuple[object, object, int]] = {}
    for piece in part.pieces:
        partition = piece[place.partition].item(0)
        first, last = (piece[place.offset].item(row) for row in (0, piece.height - 1))
        before = spans.get(partition, (first, last, 0))
        spans[partition] = (before[0], last, before[2] + piece.height)
    return f"{part.topic} {sorted(spans.items())}"


def _parts(blocks: list[Block]) -> list[_Part]:
    """The rows of a batch, those of one topic and shape together, in reverse order."""
    gathered: dict[tuple[str, Shape], list[tuple[Piece, int]]] = {}
    before = 0
    for block in blocks:
        for piece in block.pieces:
            gathered.setdefault((piece.topic, piece.shape), []).append((piece, before))
        before += block.records
    return [
        _Part(
            topic,
            shape,
            tuple(piece.rows for piece, _ in pieces),
            np.concatenate([piece.places + before for piece, before in pieces]),
        )
        for (topic, shape), pieces in reversed(gathered.items())
    ]
