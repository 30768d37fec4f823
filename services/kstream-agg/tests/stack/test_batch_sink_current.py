"""The batch-sink's inserts on the engine of a current ClickHouse (chDB), without a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from warehouse import trades

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.kafka.wire import RecordEncoder
from kstream_agg.pipeline.testing import PipelineBench
from kstream_agg.sinks.batch_sink import BatchSinkSettings, make_pipeline
from kstream_agg.sinks.batch_sink_blocks import RAW_SHAPE, AvroBlocks, RawBlocks, shape_of
from kstream_agg.sinks.batch_sink_writer import BatchLimits, BlockGatherer, BlockWriter
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.sinks.clickhouse_tables import Inserts
from kstream_agg.sinks.rows import Numbers, Rows, Texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.pipeline.definition import Pipeline
    from kstream_agg.sinks.rows import Column

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

ENCODER = RecordEncoder(RAW_TRADE, 1)
SHAPE = shape_of(RAW_TRADE)
FRONT = Path(__file__).parents[1] / "support" / "chdb_front.py"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    folder = tmp_path_factory.mktemp("chdb")
    with subprocess.Popen(
        [sys.executable, str(FRONT), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as front:
        assert front.stdout is not None
        assert front.stdin is not None
        try:
            settings = ClickHouseSettings(url=f"http://127.0.0.1:{int(front.stdout.readline())}")
            with ClickHouse(settings) as made:
                yield made
        finally:
            front.stdin.close()
            try:
                front.wait(20)
            except subprocess.TimeoutExpired:
                front.kill()


def sink_into(client: ClickHouse, table: str, values: list[bytes], *, avro: bool) -> list[int]:
    """Runs the sink's pipeline on a Kafka in memory; offsets of the dead letters."""
    settings = BatchSinkSettings.model_validate({"sink": {"topics": ["in"]}})
    inserts = Inserts(client, table, SHAPE if avro else RAW_SHAPE, create=True)

    def make() -> Pipeline[Any]:
        gatherer = BlockGatherer(lambda *_: inserts, BatchLimits())
        writer = BlockWriter(lambda *_: inserts, BatchLimits(), SystemClock(), Metrics())
        blocks = AvroBlocks({1: RAW_TRADE}.get) if avro else RawBlocks()
        return make_pipeline(settings, blocks, gatherer, writer)

    with PipelineBench(make) as bench:
        for value in values:
            bench.send("in", value, key=b"k")
        bench.advance(5)
        bench.advance(5)
        assert bench.committed("in") == {0: len(values)}
        headers = [dict(record.headers or ()) for record in bench.records("in-dlq")]
    return sorted(int(header["origin.offset"] or b"") for header in headers)


def test_the_engine_is_a_current_one_and_knows_what_the_sink_asks_for(client: ClickHouse) -> None:
    features = client.features()
    assert int(features.version.split(".")[0]) >= 25
    assert features.settings >= {"async_insert", "insert_deduplication_token"}
    assert features.milliseconds
    assert features.deduplicates


def test_trades_reach_their_columns_and_a_row_that_breaks_a_constraint_is_set_aside(
    client: ClickHouse,
) -> None:
    records = list(trades(500))
    first = [ENCODER.encode(record) for record in records[:1]]
    assert sink_into(client, "first", first, avro=True) == []
    client.execute("CREATE TABLE trades AS first")
    client.execute("ALTER TABLE trades ADD CONSTRAINT odd CHECK price != 31.25")
    values = [ENCODER.encode(record) for record in records]
    assert sink_into(client, "trades", values, avro=True) == [249]
    [counts] = client.rows("SELECT count(), uniqExact(kafka_offset) FROM trades FINAL")
    assert [int(count) for count in counts] == [499, 499]
    [row] = client.rows(
        "SELECT instrument_name, price, iv, legs, toUnixTimestamp64Milli(timestamp),"
        " toTypeName(received_at), kafka_offset FROM trades WHERE trade_seq = 21"
    )
    # iv is there for every third, legs for every seventh.
    text = "x" * 21 + "ä"
    assert row[:4] == ["BTC-27MAR26-21-C", 21 / 8, 55.5, text]
    assert (int(row[4]), row[5], int(row[6])) == (
        1_790_000_000_021,
        "DateTime64(3, 'UTC')",
        20,
    )


def test_any_bytes_come_back_as_they_were(client: ClickHouse) -> None:
    values = [bytes([number]) * number for number in range(256)]
    assert sink_into(client, "bytes", values, avro=False) == []
    found = client.rows("SELECT hex(value), key FROM bytes FINAL ORDER BY offset")
    assert found == [[value.hex().upper(), "k"] for value in values]


def test_an_insert_sent_again_is_done_once_and_rows_written_again_are_one_with_final(
    client: ClickHouse,
) -> None:
    inserts = Inserts(client, "again", RAW_SHAPE, create=True)
    columns: dict[str, Column] = {
        "topic": Texts.repeated("in", 2),
        "partition": Numbers(np.array([0, 0])),
    }
    columns |= {"offset": Numbers(np.array([0, 1])), "timestamp": Numbers(np.array([0, 0]))}
    columns |= {"key": Texts.of([None, b"k"]), "value": Texts.of([b"v", None])}
    prepared = inserts.prepare([Rows(columns, 2)])
    inserts.write(prepared, "token")
    inserts.write(prepared, "token")
    assert count_of(client, "again") == 2
    inserts.write(prepared, "of another run")
    assert count_of(client, "again FINAL") == 2


def count_of(client: ClickHouse, table: str) -> int:
    return int(client.rows(f"SELECT count() FROM {table}")[0][0])
