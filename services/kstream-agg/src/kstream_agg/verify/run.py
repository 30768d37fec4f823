"""`verify`: everything recomputed from the raw topic and compared.

For each raw topic, in this order, so that what goes on being written does no harm:

1. fix the raw topic's ends E; wait until the aggregator and the raw sink have passed them;
2. take the aggregator's position P, then the ends of the averages, A, of `-late` and `-dlq`; wait
   until the averages' sink has passed A;
3. read `-late`, `-dlq` and the averages to those ends, and the raw topic to its end of now,
   comparing its trades up to E with Postgres and all its windows with their records
   (`verify.windows` says which trades a record must cover);
4. compare the averages with Postgres;
5. where rows are left that differ or are unaccounted for, read on behind the ends and excuse
   those that newer records explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.names import dead_letter_topic, late_topic
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE
from kstream_agg.kafka.dead_letters import LetterFilter, Selection, read_letters
from kstream_agg.kafka.dlq import header_value, origin_from_headers
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.sinks.letters import STAGE as REFUSED_ROW
from kstream_agg.sinks.postgres import connect
from kstream_agg.sinks.tables import Table, average_table, raw_table
from kstream_agg.verify.reading import Span, TopicPart, TopicReader
from kstream_agg.verify.report import Check, Report
from kstream_agg.verify.tables import TableComparison, row_key
from kstream_agg.verify.waiting import (
    Group,
    readable_by,
    wait_for_group,
    wait_for_records,
)
from kstream_agg.verify.windows import REFUSED, Averages, Recomputation, epoch_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg

    from kstream_agg.sinks.connectors import Sink
    from kstream_agg.sinks.patience import Patience
    from kstream_agg.sinks.settings import AggregatorView, ToolSettings
    from kstream_agg.verify.tables import RowKey

__all__ = ["TRADES_CHECK", "WINDOWS_CHECK", "WINDOW_ROWS_CHECK", "verify"]

TRADES_CHECK = "trades: topic = Postgres"
WINDOWS_CHECK = "windows: topic = recomputation"
WINDOW_ROWS_CHECK = "windows: topic = Postgres"

_Spans = dict[TopicPart, Span]


@dataclass(frozen=True, slots=True)
class _Tools:
    """What the steps work with."""

    settings: ToolSettings
    aggregator: AggregatorView
    reader: TopicReader
    postgres: psycopg.Connection[Any]
    trades: RecordDecoder
    averages: RecordDecoder
    raw_sink: Sink
    agg_sink: Sink
    patience: Patience


@dataclass(frozen=True, slots=True)
class _Ends:
    """What was fixed for one raw topic (steps 1 and 2)."""

    raw: _Spans
    positions: dict[TopicPart, int]
    averages: _Spans
    late: _Spans


def verify(
    settings: ToolSettings,
    aggregator: AggregatorView,
    sinks: tuple[Sink, Sink],
    patience: Patience,
    *,
    wait_for_window: bool = False,
) -> Report:
    """Compare all of the channels' topics; see the module's docstring.

    Args:
        settings: Where everything is.
        aggregator: Topics, period, grace and lateness.
        sinks: The raw trades' sink and the averages'.
        patience: How long to wait for aggregator and sinks.
        wait_for_window: First wait for a window's record.

    Raises:
        UnavailableError: Something does not answer, or has not passed the ends in time.
    """
    raw_sink, agg_sink = sinks
    with (
        SchemaRegistry(settings.registry) as registry,
        TopicReader(settings.kafka) as reader,
        connect(settings.postgres) as postgres,
    ):
        tools = _Tools(
            settings,
            aggregator,
            reader,
            postgres,
            RecordDecoder(registry.schema_by_id, RAW_TRADE),
            RecordDecoder(registry.schema_by_id, AVERAGE),
            raw_sink,
            agg_sink,
            patience,
        )
        if wait_for_window:
            wait_for_records(reader, aggregator.average_topics, "closed window", patience)
        checks: list[Check] = []
        for raw_topic in aggregator.raw_topics:
            checks += _verify_topic(tools, raw_topic)
    return Report(tuple(checks))


def _verify_topic(tools: _Tools, raw_topic: str) -> list[Check]:
    average_topics = tools.aggregator.average_topics_of(raw_topic)
    ends = _fix_ends(tools, raw_topic, average_topics)
    late = _read_late(tools, ends.late, raw_topic)
    trades_check = Check(TRADES_CHECK, raw_topic)
    trades = _table(tools, raw_table(raw_topic), trades_check, tools.raw_sink, tools.trades)
    families = [
        _Family.read(tools, topic, period_s, advance_s, ends, late)
        for topic, (period_s, advance_s) in zip(
            average_topics, tools.aggregator.window.families, strict=True
        )
    ]
    group = tools.aggregator.group_of(raw_topic)
    for part, offset, trade in _read_raw(tools, raw_topic, trades_check):
        if offset < ends.raw[part].end:
            trades.add(trade)
        if group is not None:
            # Numbers mean something within an instrument only: offsets stand for them.
            trade |= {"instrument_name": group, "trade_seq": offset}
        for family in families:
            family.recomputation.add(part, offset, trade)
    _finish_table(tools, trades, ends.raw, tools.trades)
    trades_check.note("repeats of a trade in the topic", trades.repeats)
    return [trades_check, *(check for family in families for check in family.judge(tools, ends))]


@dataclass(frozen=True, slots=True)
class _Family:
    """The windows of one period."""

    topic: str
    spans: _Spans
    averages: Averages
    recomputation: Recomputation

    @classmethod
    def read(  # noqa: PLR0913, PLR0917 - private, called once
        cls,
        tools: _Tools,
        topic: str,
        period_s: int,
        advance_s: int,
        ends: _Ends,
        late: dict[TopicPart, dict[int, str]],
    ) -> _Family:
        spans = {part: span for part, span in ends.averages.items() if part.topic == topic}
        averages = _read_averages(tools, spans)
        recomputation = Recomputation(
            averages, period_s * 1000, ends.positions, late, advance_s * 1000
        )
        return cls(topic, spans, averages, recomputation)

    def judge(self, tools: _Tools, ends: _Ends) -> tuple[Check, Check]:
        """Compare with the recomputation and with Postgres."""
        windows_check = Check(WINDOWS_CHECK, self.topic)
        _judge_windows(tools, windows_check, self.recomputation, ends.raw, self.spans)
        rows_check = Check(WINDOW_ROWS_CHECK, self.topic)
        table = average_table(self.topic)
        rows = _table(tools, table, rows_check, tools.agg_sink, tools.averages)
        for average in self.averages.values():
            rows.add(average)
        _finish_table(tools, rows, self.spans, tools.averages)
        return windows_check, rows_check


def _fix_ends(tools: _Tools, raw_topic: str, average_topics: Sequence[str]) -> _Ends:
    reader, patience = tools.reader, tools.patience
    aggregator = Group(tools.aggregator.group_id)
    # 1.
    raw = reader.spans([raw_topic])
    raw_sink = Group(tools.raw_sink.definition.group_id, must_read=readable_by(tools.trades))
    wait_for_group(reader, raw_sink, raw, patience)
    positions = wait_for_group(reader, aggregator, raw, patience)
    # 2.
    averages = reader.spans(average_topics)
    late = reader.spans([late_topic(raw_topic), dead_letter_topic(raw_topic)])
    agg_sink = Group(tools.agg_sink.definition.group_id, must_read=readable_by(tools.averages))
    wait_for_group(reader, agg_sink, averages, patience)
    return _Ends(raw, positions, averages, late)


def _table(
    tools: _Tools, table: Table, check: Check, sink: Sink, decoder: RecordDecoder
) -> TableComparison:
    refused = _read_refused(tools, table, check.topic, sink, decoder)
    return TableComparison(tools.postgres, tools.settings.postgres, table, check, refused=refused)


def _read_refused(
    tools: _Tools, table: Table, topic: str, sink: Sink, decoder: RecordDecoder
) -> dict[RowKey, list[dict[str, Any]]]:
    """The topic's records that the table has refused, by the sink's dead letters."""
    found: dict[RowKey, list[dict[str, Any]]] = {}
    which = LetterFilter(origin=topic, stage=REFUSED_ROW)
    for letter in read_letters(tools.reader, [Selection(sink.dead_letter_topic)], which):
        try:
            record = decoder.decode(letter.value)
        except InvalidRecordError:  # not the watch's: it sets aside what it has decoded
            continue
        found.setdefault(row_key(table, record), []).append(record)
    return found


def _decoded(
    tools: _Tools, spans: Mapping[TopicPart, Span], decoder: RecordDecoder, check: Check | None
) -> Iterator[tuple[TopicPart, int, dict[str, Any]]]:
    for record in tools.reader.read(spans):
        if record.value is None:
            continue
        try:
            value = decoder.decode(record.value)
        except InvalidRecordError:
            if check is not None:
                check.note("undecodable records, which belong into the dead-letter topics")
            continue
        yield record.part, record.offset, value


def _read_raw(
    tools: _Tools, raw_topic: str, check: Check
) -> Iterator[tuple[TopicPart, int, dict[str, Any]]]:
    # 3. To the end of now: a window's record may cover trades behind the fixed ends.
    return _decoded(tools, tools.reader.spans([raw_topic]), tools.trades, check)


def _read_averages(tools: _Tools, spans: _Spans) -> Averages:
    return {
        (value["instrument_name"], value["window_start"]): value
        for _, _, value in _decoded(tools, spans, tools.averages, None)
    }


def _read_late(tools: _Tools, spans: _Spans, raw_topic: str) -> dict[TopicPart, dict[int, str]]:
    """What the aggregator says it has not counted, with its reason: late, future or refused."""
    excluded: dict[TopicPart, dict[int, str]] = {}
    for record in tools.reader.read(spans):
        origin = origin_from_headers(record.headers)
        if origin is not None and origin.topic == raw_topic:
            reason = header_value(record.headers, "late.reason") or REFUSED
            part = TopicPart(origin.topic, origin.partition)
            excluded.setdefault(part, {})[origin.offset] = reason
    return excluded


def _judge_windows(
    tools: _Tools,
    check: Check,
    recomputation: Recomputation,
    raw: _Spans,
    averages: _Spans,
) -> None:
    window = tools.aggregator.window
    closed = set(
        recomputation.closed(round(window.allowed_lateness * 1000), round(window.grace * 1000))
    )
    cut = {part for part, span in raw.items() if span.begin > 0}
    averages_cut = any(span.begin > 0 for span in averages.values())
    for key, wrong in recomputation.verdicts(closed):
        if wrong is not None and _is_out_of_sight(
            recomputation, key, cut, averages_cut=averages_cut
        ):
            check.note("windows whose trades or records retention has deleted")
            continue
        check.compared += 1
        if wrong is not None:
            check.differs(f"{key[0]} {key[1]:%Y-%m-%d %H:%M:%S}: {wrong}")
    check.note("windows still open", recomputation.count_open(closed))
    check.note("records in -late or -dlq", recomputation.excluded_count)
    check.note("repeats of a trade in a window", recomputation.repeats)


def _is_out_of_sight(
    recomputation: Recomputation,
    key: tuple[str, Any],
    cut: set[TopicPart],
    *,
    averages_cut: bool,
) -> bool:
    """Whether retention has deleted what the window would have to be judged by."""
    part = recomputation.part_of(key)
    if part is None:
        # Without a trade left we cannot know its partition: any that is cut may have held it.
        return bool(cut)
    if averages_cut and not recomputation.has_record(key):
        return True
    oldest = recomputation.oldest_ms(part)
    return part in cut and oldest is not None and epoch_ms(key[1]) <= oldest


def _finish_table(
    tools: _Tools, comparison: TableComparison, fixed: _Spans, decoder: RecordDecoder
) -> None:
    """Steps 4 and 5 for one table."""
    comparison.find_unaccounted(is_cut=any(span.begin > 0 for span in fixed.values()))
    if comparison.is_unsettled:
        topics: Sequence[str] = sorted({part.topic for part in fixed})
        now = tools.reader.spans(topics)
        tail = {part: Span(fixed[part].end, now[part].end) for part in fixed if part in now}
        for _, _, value in _decoded(tools, tail, decoder, None):
            comparison.excuse(comparison.key_of(value))
    comparison.finish()
