"""Turns what a source has received into transactions of Kafka.

A transaction holds trades and the progress that they make, so that at any time the topic and its
ledger agree: a trade the ledger knows is a repeat and is dropped, another one is written.

    1. Receipts add records to the transaction; the first one opens it.
    2. When it is old or large enough, the progress of all that it touched is added.
    3. It is committed: topic and progress move together, or neither does.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import (
    COMMIT_SECONDS,
    DEAD_LETTERS,
    SOURCE_GAPS,
    SOURCE_HOLES,
    SOURCE_LAG_SECONDS,
    TRADES_BACKFILLED,
    TRADES_RECEIVED,
    TRADES_REPEATED,
    UNKNOWN_KEYS,
)
from kstream_agg.core.telemetry import TRACEPARENT, traceparent_header
from kstream_agg.deribit.frames import TradeBatch
from kstream_agg.deribit.ledger import Admission, Anchor
from kstream_agg.kafka.dlq import error_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import Span

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.deribit.events import BadFrame
    from kstream_agg.deribit.frames import RejectedTrade
    from kstream_agg.deribit.handover import Receipt
    from kstream_agg.deribit.lane import Lane
    from kstream_agg.kafka.transactions import TransactionWriter
    from kstream_agg.kafka.writer import Headers

__all__ = ["SIMULATED", "Pacing", "TradePublisher"]

SIMULATED: Final = "simulated"
"""Header of records that come from a simulator; its value is `true`."""

_log = get_logger(__name__)

# Brokers take 1 MiB a record by default; key, headers and framing need some of it.
_MAX_VALUE_BYTES: Final = 900_000
_CHANNEL_IN_FRAME: Final = re.compile(rb'"channel"\s*:\s*"(trades\.[^"]+)"')
_BACKFILL: Final = "backfill"


@dataclass(frozen=True, slots=True)
class Pacing:
    """When a transaction is committed, and when its trades are late.

    Args:
        interval_s: So long after its first receipt at most.
        records: As soon as it holds so many.
        lag_warning_s: Trades received so long after they happened are worth a warning.
    """

    interval_s: float = 0.01
    records: int = 5_000
    lag_warning_s: float = 10.0


class TradePublisher:
    """Publishes receipts; used by one thread.

    Args:
        writer: The Kafka producer.
        lanes: One for each channel of the settings.
        context: Its metrics count, its tracer makes a span `produce_to_kafka` a receipt.
        pacing: When a transaction is committed.
    """

    def __init__(
        self,
        writer: TransactionWriter,
        lanes: Sequence[Lane],
        context: ServiceContext,
        pacing: Pacing,
    ) -> None:
        self._writer = writer
        self.lanes = {lane.channel: lane for lane in lanes}
        metrics = context.metrics
        self._tracer = context.telemetry.tracer
        self._clock = context.clock
        self._pacing = pacing
        trades = metrics.counter(TRADES_RECEIVED)
        self._trades = {lane.channel: trades.labels(lane.channel) for lane in lanes}
        self._unknown_keys = metrics.counter(UNKNOWN_KEYS)
        self._dead_letters = metrics.counter(DEAD_LETTERS)
        self._repeated = metrics.counter(TRADES_REPEATED)
        self._backfilled = metrics.counter(TRADES_BACKFILLED)
        self._gaps = metrics.counter(SOURCE_GAPS)
        self._holes = metrics.gauge(SOURCE_HOLES)
        self._commit_seconds = metrics.histogram(COMMIT_SECONDS)
        self._lag = metrics.gauge(SOURCE_LAG_SECONDS)
        self._lags = False
        self._spans: deque[Span] = deque()
        self._opened_at: float | None = None
        self._first_receipt_ms = 0

    def due_in(self) -> float | None:
        """Seconds until the open transaction is to be committed; None when none is open."""
        if self._opened_at is None:
            return None
        if self._writer.pending >= self._pacing.records:
            return 0.0
        return self._opened_at + self._pacing.interval_s - self._clock.monotonic()

    def publish(self, receipt: Receipt) -> None:
        """Add the records of one receipt to the transaction.

        Raises:
            DeliveryError: Kafka does not take records any more.
        """
        if self._opened_at is None:
            self._opened_at = self._clock.monotonic()
            self._first_receipt_ms = receipt.received_at_ms
        span = self._tracer.start_span(
            "produce_to_kafka",
            context=Context(),
            kind=SpanKind.PRODUCER,
            start_time=receipt.received_at_ms * 1_000_000,
        )
        headers: Headers = [(TRACEPARENT, traceparent_header(span))]
        if receipt.simulated:
            headers.append((SIMULATED, b"true"))
        content = receipt.content
        if isinstance(content, TradeBatch):
            self._publish_batch(content, receipt, headers, span)
        else:
            self._publish_frame(content, headers)
        if span.is_recording():
            self._spans.append(span)
        else:
            span.end()

    def commit(self, keep_waiting: Callable[[], bool]) -> None:
        """Commit the open transaction with the progress that it makes.

        Args:
            keep_waiting: Asked every second while Kafka does not answer; False ends the wait.

        Raises:
            DeliveryError: It cannot be committed.
        """
        now_ms = self._clock.now_ms()
        for lane in self.lanes.values():
            for subject, value in lane.take_changes(now_ms):
                self._writer.produce(lane.progress_topic, value, key=subject.encode())
        received = self._opened_at is not None
        self._writer.commit(keep_waiting)
        self._opened_at = None
        if received:
            self._commit_seconds.observe((self._clock.now_ms() - self._first_receipt_ms) / 1000)
        while self._spans:
            self._spans.popleft().end()
        for lane in self.lanes.values():
            self._holes.labels(lane.topic).set(sum(1 for _ in lane.ledger.holes()))

    def touch(self) -> None:
        """Progress was made without a receipt: let it be committed."""
        if self._opened_at is None:
            self._opened_at = self._clock.monotonic()
            self._first_receipt_ms = self._clock.now_ms()

    def give_up(self, channel: str, name: str, first: int, last: int, reason: str) -> int:
        """Look no more for trades of an instrument: name them in the gaps topic.

        Returns:
            How many there are.
        """
        lane = self.lanes[channel]
        now_ms = self._clock.now_ms()
        count = 0
        for run in lane.ledger.give_up(name, first, last):
            self.touch()
            value = lane.gap_record(name, run, now_ms, reason)
            self._writer.produce(lane.gaps_topic, value, key=name.encode())
            count += run[1] - run[0] + 1
            _log.warning(
                "trades are missing for good",
                instrument=name, first_seq=run[0], last_seq=run[1], reason=reason,
            )  # fmt: skip
        self._gaps.labels(lane.topic).inc(count)
        return count

    def _publish_batch(
        self, batch: TradeBatch, receipt: Receipt, headers: Headers, span: Span
    ) -> None:
        lane = self.lanes[batch.channel]
        written = self._publish_trades(lane, batch, receipt, headers)
        for rejected in batch.rejected:
            self._publish_rejected(lane, rejected, receipt, headers)
        count = len(batch.trades)
        self._trades[batch.channel].inc(count)
        if written < count:
            self._repeated.labels(lane.topic).inc(count - written)
        if receipt.source == _BACKFILL:
            self._backfilled.labels(lane.topic).inc(written)
        elif count:
            last = batch.trades[-1]
            latest = Anchor(last.instrument_name, last.trade_seq, last.timestamp)
            lane.note_receipt(batch.trades[0].timestamp, latest, receipt.received_at_ms)
            self._note_lag(receipt, last.timestamp)
        if span.is_recording():
            span.set_attribute("messaging.destination.name", lane.topic)
            span.set_attribute("deribit.channel", batch.channel)
            span.set_attribute("messaging.batch.message_count", written)

    def _publish_trades(
        self, lane: Lane, batch: TradeBatch, receipt: Receipt, headers: Headers
    ) -> int:
        """Add the trades the topic does not hold; how many there were."""
        encoder, ledger, topic = lane.encoder, lane.ledger, lane.topic
        instruments, touch, encode = ledger.instruments, ledger.touched.add, encoder.encode
        produce, extras = self._writer.produce, batch.extras
        in_order = encoder.receipt(receipt.received_at_ms, receipt.source)
        # Behind a later one of its instrument: marked, whichever way it came.
        late = encoder.receipt(receipt.received_at_ms, _BACKFILL)
        written = 0
        for position, trade in enumerate(batch.trades):
            name, seq = trade.instrument_name, trade.trade_seq
            entry = instruments.get(name)
            if entry is not None and seq == entry.highest + 1:  # as almost always
                entry.highest = seq
                touch(name)
                shared = in_order
            else:
                admission = ledger.admit(name, seq, claim=receipt.claim)
                if admission is Admission.REPEAT:
                    continue
                shared = late if admission is Admission.LATE else in_order
            value = encode(trade, shared, extras.get(position) if extras else None)
            written += 1
            if len(value) > _MAX_VALUE_BYTES:
                error = InvalidRecordError(f"the record has {len(value)} bytes", stage="encode")
                self._set_aside(lane, value, error, headers)
                continue
            produce(topic, value, key=name.encode(), headers=headers)
        if extras:
            self._unknown_keys.inc(len(extras))
        return written

    def _publish_rejected(
        self, lane: Lane, rejected: RejectedTrade, receipt: Receipt, headers: Headers
    ) -> None:
        """A trade that cannot become a record: its number is not missing, its bytes are kept.

        The exchange's history gives it again and again; that is one dead letter all the same.
        """
        known = False
        if rejected.identity is not None:
            admission = lane.ledger.admit(*rejected.identity, claim=receipt.claim)
            known = admission is Admission.REPEAT
        if receipt.source != _BACKFILL or (rejected.identity is not None and not known):
            self._set_aside(lane, rejected.wire, rejected.error, headers)

    def _note_lag(self, receipt: Receipt, happened_ms: int) -> None:
        lag_s = (receipt.received_at_ms - happened_ms) / 1000
        self._lag.set(lag_s)
        threshold = self._pacing.lag_warning_s
        # A recording's trades happened long ago.
        if not self._lags and lag_s > threshold and not receipt.simulated:
            self._lags = True
            _log.warning("trades arrive late", lag_s=round(lag_s, 1), threshold_s=threshold)
        elif self._lags and lag_s < threshold / 2:
            self._lags = False
            _log.warning("trades arrive in time again", lag_s=round(lag_s, 1))

    def _publish_frame(self, bad: BadFrame, headers: Headers) -> None:
        found = _CHANNEL_IN_FRAME.search(bad.frame)
        named = found[1].decode("utf-8", "replace") if found else ""
        # Where no channel can be read, the first topic's dead letters are as good as another's.
        lane = self.lanes.get(named) or next(iter(self.lanes.values()))
        self._set_aside(lane, bad.frame, bad.error, headers)

    def _set_aside(self, lane: Lane, value: bytes, error: Exception, headers: Headers) -> None:
        stage = error.stage if isinstance(error, InvalidRecordError) else "decode"
        headers = [*headers, *error_headers(error, stage)]
        if len(value) > _MAX_VALUE_BYTES:
            headers.append(("truncated.from_bytes", str(len(value)).encode()))
            value = value[:_MAX_VALUE_BYTES]
        self._writer.produce(lane.dead_letters, value, headers=headers)
        self._dead_letters.labels(lane.dead_letters, stage).inc()
