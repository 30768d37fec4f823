"""The batch-sink without a server: blocks, what inserts are refused for, halving, waits."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import (
    ContractError,
    ErrorLimitError,
    KStreamError,
    SettingsError,
    UnavailableError,
)
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE
from kstream_agg.core.settings import load_settings
from kstream_agg.kafka.wire import RecordEncoder
from kstream_agg.pipeline.steps import Shutdown
from kstream_agg.pipeline.testing import PipelineBench
from kstream_agg.sinks.batch_sink import BatchSinkSettings, make_pipeline
from kstream_agg.sinks.batch_sink_blocks import AvroBlocks, RawBlocks, shape_of
from kstream_agg.sinks.batch_sink_writer import BatchLimits, BlockGatherer, BlockWriter
from kstream_agg.sinks.clickhouse_errors import InsertRefusedError, Refusal, server_error
from kstream_agg.sinks.clickhouse_native import encode_block, misfits, parse_target
from kstream_agg.sinks.clickhouse_tables import Prepared
from kstream_agg.sinks.rows import Numbers, Rows, Texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kstream_agg.pipeline.definition import Pipeline
    from kstream_agg.sinks.rows import Column

# --- the Native format ---------------------------------------------------------------------


def read_number(data: io.BytesIO) -> int:
    value = shift = 0
    while True:
        [byte] = data.read(1)
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value


def read_block(block: bytes) -> dict[str, list[Any]]:
    """Reads what the tests write, value by value."""
    data = io.BytesIO(block)
    columns, rows = read_number(data), read_number(data)
    found: dict[str, list[Any]] = {}
    for _ in range(columns):
        name, kind = (data.read(read_number(data)).decode() for _ in range(2))
        nulls = data.read(rows) if kind.startswith("Nullable(") else bytes(rows)
        inner = kind.removeprefix("Nullable(").removesuffix(")")
        values: list[Any] = [read_value(data, inner) for _ in range(rows)]
        found[name] = [None if null else item for null, item in zip(nulls, values, strict=True)]
    assert data.read() == b""
    return found


def read_value(data: io.BytesIO, kind: str) -> object:
    if kind == "String":
        return data.read(read_number(data))
    form = {"Int64": "<q", "DateTime64(3, 'UTC'": "<q", "UInt32": "<I", "UInt64": "<Q"}
    form |= {"Float64": "<d", "UInt8": "<B", "DateTime": "<I", "DateTime64(6, 'UTC'": "<q"}
    [value] = struct.unpack(form[kind], data.read(struct.calcsize(form[kind])))
    return value


def column_of(values: list[Any], kind: str) -> Column:
    if kind == "string":
        return Texts.of([None if text is None else text.encode() for text in values], is_text=True)
    if kind == "bytes":
        return Texts.of(values)
    dtype = np.float64 if kind == "double" else np.int64
    nulls = np.array([value is None for value in values])
    return Numbers(np.array([value or 0 for value in values], dtype=dtype), nulls)


@given(
    st.lists(
        st.tuples(
            st.none() | st.text(max_size=6) | st.text("ä", min_size=60, max_size=70),
            st.none() | st.binary(max_size=200),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(allow_nan=False),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_block_holds_what_went_into_it(rows: list[tuple[Any, ...]]) -> None:
    types = {"text": "String", "bytes": "String", "long": "Int64", "double": "Float64"}
    kinds = ("string", "bytes", "long", "double")
    targets = [
        parse_target(name, f"Nullable({kind})", what)
        for (name, kind), what in zip(types.items(), kinds, strict=True)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    made = Rows(
        {
            name: column_of(column, kind)
            for name, column, kind in zip(types, columns, kinds, strict=True)
        },
        len(rows),
    )
    # In two pieces, as of two partitions.
    half = len(rows) // 2
    pieces = [made.take(slice(0, half)), made.take(slice(half, None))]
    found = read_block(encode_block(targets, pieces))
    columns[0] = [None if text is None else text.encode() for text in columns[0]]
    assert found == dict(zip(types, columns, strict=True))


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_texts_of_all_lengths_stand_behind_their_length(length: int) -> None:
    texts = [b"x" * length, b"", b"y"]
    rows = Rows({"t": Texts.of(texts)}, 3)
    found = read_block(encode_block([parse_target("t", "String", "string")], [rows]))
    assert found["t"] == texts


def test_times_follow_the_columns_unit() -> None:
    rows = [Rows({"t": Numbers(np.array([1_700_000_000_123]))}, 1)]
    for kind, expected in (
        ("DateTime", 1_700_000_000),
        ("Int64", 1_700_000_000_123),
        ("Nullable(UInt64)", 1_700_000_000_123),
    ):
        block = encode_block([parse_target("t", kind, "timestamp-millis")], rows)
        assert read_block(block)["t"] == [expected]
    for precision, factor in ((3, 1), (6, 1_000)):
        target = parse_target("t", f"DateTime64({precision}, 'UTC')", "timestamp-millis")
        block = encode_block([target], rows)
        assert block.endswith(struct.pack("<q", 1_700_000_000_123 * factor))


def test_a_column_that_cannot_hold_a_kind_is_named() -> None:
    with pytest.raises(ContractError, match=r"column 'a' has type Array\(String\).*string"):
        parse_target("a", "Array(String)", "string")
    with pytest.raises(ContractError, match=r"UInt32.*double"):
        parse_target("a", "UInt32", "double")


def test_dictionary_columns_are_written_plain() -> None:
    assert (
        parse_target("a", "LowCardinality(Nullable(String))", "string").type == "Nullable(String)"
    )


def test_rows_that_do_not_fit_are_found() -> None:
    narrow = parse_target("n", "UInt8", "long")
    bad = misfits(narrow, column_of([0, 255, 256, -1, None], "long"))
    assert bad is not None
    assert bad.tolist() == [False, False, True, True, True]
    assert misfits(narrow, Numbers(np.array([0, 255]))) is None
    time = parse_target("t", "DateTime", "timestamp-millis")
    bad = misfits(time, Numbers(np.array([0, -1_000, 5_000_000_000_000])))
    assert bad is not None
    assert bad.tolist() == [False, True, True]
    text = parse_target("s", "String", "string")
    bad = misfits(text, Texts.of(["ä".encode(), b"a", b"\xff", b"\xc3"], is_text=True))
    assert bad is not None
    assert bad.tolist() == [False, False, True, True]
    # Each must be by itself what both are together.
    assert misfits(text, Texts.of([b"\xc3", b"\xa4"], is_text=True)) is not None
    assert misfits(parse_target("b", "String", "bytes"), Texts.of([b"\xff"])) is None


# --- errors --------------------------------------------------------------------------------


def refused(code: int, status: int = 500, **more: Any) -> KStreamError:  # noqa: ANN401 - its arguments
    return server_error("it", status, {"x-clickhouse-exception-code": str(code)}, b"why", **more)


def test_only_what_is_known_to_be_the_datas_fault_is() -> None:
    for code in (6, 27, 117, 349, 395, 469):
        error = refused(code)
        assert isinstance(error, InsertRefusedError)
        assert error.refusal is Refusal.DATA
    for code in (0, 36, 159, 164, 202, 209, 243, 319, 999, 1_002):
        assert isinstance(refused(code), UnavailableError)
    assert isinstance(refused(516), SettingsError)


@pytest.mark.parametrize(
    ("code", "refusal"), [(241, Refusal.SIZE), (252, Refusal.SIZE), (60, Refusal.MISSING)]
)
def test_size_and_missing_tables_are_told_apart(code: int, refusal: Refusal) -> None:
    error = refused(code)
    assert isinstance(error, InsertRefusedError)
    assert error.refusal is refusal


def test_an_old_server_tells_its_number_in_the_text_alone() -> None:
    error = server_error("it", 500, {}, b"Code: 395, e.displayText() = DB::Exception: no")
    assert isinstance(error, InsertRefusedError)
    assert error.code == 395


def test_an_operator_can_name_further_numbers() -> None:
    error = refused(36, data_codes=frozenset({36}))
    assert isinstance(error, InsertRefusedError)
    assert error.refusal is Refusal.DATA


# --- the writer ----------------------------------------------------------------------------


def numbers(rows: Rows, name: str) -> list[Any]:
    return [rows[name].item(row) for row in range(rows.height)]


class Table:
    """A table in memory, refusing what it is told to."""

    table = "table"

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.inserts: list[int] = []
        self.tokens: list[str] = []
        self.bad: frozenset[int] = frozenset()
        self.most: int | None = None
        self.away = False
        self.broken: Exception | None = None
        self.prepared: list[Rows] = []

    def prepare(self, pieces: Sequence[Rows]) -> Prepared:
        if self.broken is not None:
            raise self.broken
        self.prepared += pieces
        offsets = [
            offset
            for piece in pieces
            for offset in numbers(piece, "offset" if "offset" in piece.columns else "kafka_offset")
        ]
        return Prepared(np.array(offsets, dtype=np.int64).tobytes(), len(offsets), {})

    def write(self, prepared: Prepared, token: str) -> None:
        offsets = np.frombuffer(prepared.block, dtype=np.int64).tolist()
        self.inserts.append(len(offsets))
        self.tokens.append(token)
        if self.away:
            raise UnavailableError("away")
        if self.most is not None and len(offsets) > self.most:
            raise InsertRefusedError("too much", code=241, refusal=Refusal.SIZE)
        if self.bad & set(offsets):
            raise InsertRefusedError("bad", code=395, refusal=Refusal.DATA)
        self.rows += offsets

    def forget(self) -> None:
        pass


class Sinking(PipelineBench):
    """The sink's pipeline on a table in memory."""

    def __init__(self, table: Table, *, avro: bool = False, **limits: Any) -> None:  # noqa: ANN401 - fields of the limits
        settings = BatchSinkSettings.model_validate({"sink": {"topics": ["in"]}})
        self._writers_clock = ManualClock()
        chosen = BatchLimits(**{"count": 100, **limits})
        schemas = {1: RAW_TRADE, 2: AVERAGE}

        def make() -> Pipeline[Any]:
            writer = BlockWriter(lambda *_: table, chosen, self._writers_clock, Metrics())
            gatherer = BlockGatherer(lambda *_: table, chosen)
            blocks = AvroBlocks(schemas.get) if avro else RawBlocks()
            return make_pipeline(settings, blocks, gatherer, writer)

        super().__init__(make, partitions=2)

    def advance(self, seconds: float) -> None:
        self.run()
        self._writers_clock.advance(seconds)
        super().advance(seconds)

    def fill(self, *values: bytes | None) -> None:
        for value in values:
            self.send("in", value, partition=0)

    def dead(self) -> list[int]:
        headers = [dict(record.headers or ()) for record in self.records("in-dlq")]
        return sorted(int(header["origin.offset"] or b"") for header in headers)


def test_single_bad_rows_are_found_and_the_others_written() -> None:
    table = Table()
    table.bad = frozenset({3, 64})
    with Sinking(table) as bench:
        bench.fill(*[b"v"] * 100)
        bench.advance(5)
        assert sorted(table.rows) == sorted(set(range(100)) - table.bad)
        assert bench.dead() == [3, 64]
        assert bench.committed("in")[0] == 100
        # About two inserts for each halving, and no more.
        assert len(table.inserts) < 40
        # Each insert of other rows has another name.
        assert len(set(table.tokens)) == len(table.tokens)


def test_a_batch_that_is_too_much_is_halved_and_no_row_given_up() -> None:
    table = Table()
    table.most = 30
    with Sinking(table) as bench:
        bench.fill(*[b"v"] * 100)
        for _ in range(10):
            bench.advance(60)
        assert sorted(table.rows) == list(range(100))
        assert bench.dead() == []
        assert bench.committed("in")[0] == 100


def test_a_row_that_is_too_much_by_itself_is_kept() -> None:
    table = Table()
    table.most = 0
    with Sinking(table) as bench:
        bench.fill(b"v", b"w")
        for _ in range(10):
            bench.advance(60)
        assert (table.rows, bench.dead()) == ([], [])
        assert not bench.committed("in").get(0)
        table.most = None
        bench.advance(60)
        bench.advance(60)
        assert sorted(table.rows) == [0, 1]


@pytest.mark.parametrize("error", [UnavailableError("away"), ContractError("no"), KeyError("bug")])
def test_whatever_does_not_prove_a_row_bad_keeps_the_batch(error: Exception) -> None:
    table = Table()
    table.broken = error
    with Sinking(table) as bench:
        bench.fill(b"v")
        for _ in range(5):
            bench.advance(60)
        assert bench.dead() == []
        assert not bench.committed("in").get(0)
        table.broken = None
        bench.advance(60)
        bench.advance(60)
        assert table.rows == [0]
        assert bench.committed("in")[0] == 1


def test_attempts_are_made_ever_more_rarely() -> None:
    table = Table()
    table.away = True
    with Sinking(table, retry_max_s=8.0) as bench:
        bench.fill(b"v")
        bench.advance(2)
        tried = []
        for _ in range(40):
            before = len(table.inserts)
            bench.advance(1)
            tried.append(len(table.inserts) - before)
        attempts = [second for second, count in enumerate(tried) if count]
        waits = np.diff(attempts)
        assert set(tried) == {0, 1}
        assert waits.max() <= 9
        assert waits[-1] >= 8 > waits[0]


def test_what_was_written_before_an_outage_is_not_written_again() -> None:
    table = Table()
    table.bad = frozenset({99})
    with Sinking(table) as bench:
        original = table.write

        def fail_once(prepared: Prepared, token: str) -> None:
            if len(table.inserts) == 4 and not table.away:
                table.away = True
                raise UnavailableError("away")
            table.away = False
            original(prepared, token)

        table.write = fail_once  # type: ignore[method-assign]  # a fault of this test alone
        bench.fill(*[b"v"] * 100)
        for _ in range(4):
            bench.advance(60)
        assert sorted(table.rows) == list(range(99))
        assert bench.dead() == [99]


def test_batches_close_by_count_bytes_and_time() -> None:
    for limits, values, sizes in (
        ({"count": 4}, [b"v"] * 4, [4]),
        ({"bytes": 30}, [b"x" * 10] * 3, [3]),
        ({"seconds": 5.0}, [b"v"] * 3, []),
    ):
        table = Table()
        with Sinking(table, **limits) as bench:
            bench.fill(*values)
            bench.run()
            assert table.inserts == sizes
            bench.advance(6)
            assert table.inserts == [len(values)]


def test_an_open_batch_is_flushed_at_the_end_or_dropped_as_the_setting_says() -> None:
    for how, written in ((Shutdown.FLUSH, [0]), (Shutdown.DROP, [])):
        table = Table()
        with Sinking(table, on_shutdown=how, seconds=100.0) as bench:
            bench.fill(b"v")
            bench.run()
            bench.stop()
            assert table.rows == written
            assert bool(bench.committed("in").get(0)) == bool(written)


def test_more_refused_than_allowed_ends_the_sink() -> None:
    table = Table()
    table.bad = frozenset(range(1_000))
    with Sinking(table, count=1_000) as bench:
        bench.fill(*[b"v"] * 1_000)
        with pytest.raises(ErrorLimitError):
            bench.advance(60)
        assert not bench.committed("in").get(0)


# --- blocks --------------------------------------------------------------------------------


def trade(number: int) -> dict[str, Any]:
    return {
        "instrument_name": "BTC-PERPETUAL",
        "trade_seq": number,
        "trade_id": str(number),
        "timestamp": 1_700_000_000_000 + number,
        "direction": "buy",
        "price": 1.5,
        "amount": 2.5,
        "tick_direction": 0,
        "received_at": 1_700_000_000_001,
        "source": "stream",
    }


AN_AVERAGE: dict[str, Any] = {
    **dict.fromkeys(
        ("alpha", "seed", "current", "sma", "open", "high", "low", "close", "volume"), 0.5
    ),
    **dict.fromkeys(
        ("window_start", "window_end", "period", "trade_count", "first_trade_seq",
         "last_trade_seq", "revision"), 7
    ),
    "instrument_name": "BTC-PERPETUAL",
    "closed_by": "idle",
}  # fmt: skip


def test_schemas_and_bad_records_mix_and_each_row_keeps_its_place() -> None:
    trades, averages = RecordEncoder(RAW_TRADE, 1), RecordEncoder(AVERAGE, 2)
    values: list[bytes | None] = []
    for number in range(40):
        values.append(trades.encode(trade(number)))
        values.append(averages.encode(AN_AVERAGE) if number % 4 else b"no")
    values += [None, b"\0\0\0\0\x09", trades.encode(trade(40))[:-3]]
    table = Table()
    table.bad = frozenset({3, 20, 79})
    with Sinking(table, avro=True) as bench:
        bench.fill(*values)
        bench.advance(5)
        bench.advance(5)
        bad = {2 * number + 1 for number in range(0, 40, 4)} | {80, 81, 82} | table.bad
        assert bench.dead() == sorted(bad)
        assert sorted(table.rows) == sorted(set(range(83)) - bad)
        assert bench.committed("in")[0] == 83
        seqs = [
            pair
            for rows in table.prepared
            if "trade_seq" in rows.columns
            for pair in zip(numbers(rows, "kafka_offset"), numbers(rows, "trade_seq"), strict=True)
        ]
        assert all(offset == 2 * seq for offset, seq in seqs)


def test_a_body_that_bleeds_into_its_neighbour_is_found_without_keys() -> None:
    encoder = RecordEncoder(RAW_TRADE, 1)
    values = [encoder.encode(trade(number)) for number in range(100)]
    # One byte moves from a value to the next: together they still are as long.
    values[50], values[51] = values[50] + values[51][:1], values[51][1:]
    table = Table()
    with Sinking(table, avro=True) as bench:
        bench.fill(*values)
        bench.advance(5)
        bench.advance(5)
        assert bench.dead() == [50, 51]
        assert sorted(table.rows) == sorted(set(range(100)) - {50, 51})


def test_fields_no_column_is_made_for_are_named() -> None:
    schema = {"type": "record", "fields": [{"name": "m", "type": {"type": "map", "values": "int"}}]}
    with pytest.raises(ContractError, match="field 'm'") as caught:
        shape_of(schema)
    assert "sink.values" in (caught.value.remedy or "")


def test_a_field_is_not_taken_for_a_records_place() -> None:
    schema = {"type": "record", "fields": [{"name": "kafka_offset", "type": "long"}]}
    with pytest.raises(ContractError, match="'kafka_offset' is named as the column of a record's"):
        shape_of(schema)


def test_one_table_is_for_one_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSTREAM__SINK__TABLE", "t")
    monkeypatch.setenv("KSTREAM__SINK__TOPICS", "a, b")
    with pytest.raises(SettingsError, match=r"sink\.table names one table, and there are 2 topics"):
        load_settings(BatchSinkSettings, "none", folder=tmp_path)
