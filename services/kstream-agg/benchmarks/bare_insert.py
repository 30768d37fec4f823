"""The batch-sink's reference: the same blocks inserted one after the other, without Kafka.

`python bare_insert.py URL TABLE COUNT CURRENCY ROWS` prints the seconds from the first insert to
the last answer. Blocks are encoded before the clock starts: what is left is ClickHouse's own time
and the way there.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import polars as pl

from kstream_agg.core.logs import configure_logging
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import LogSettings
from kstream_agg.kafka.columns import ColumnDecoder
from kstream_agg.sinks.batch_sink_blocks import FRAME_TYPES, shape_of
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.sinks.clickhouse_tables import KAFKA_PLACE, Inserts, Prepared
from workload import encoded, wire_trades


def main(url: str, table: str, count: str, currency: str, rows: str) -> None:
    """Make the blocks and the table, then insert."""
    configure_logging(LogSettings(level="warning"), "bare_insert")
    shape = shape_of(RAW_TRADE)
    types = {field.name: FRAME_TYPES[field.kind] for field in shape.fields}
    nullable = [field.name for field in shape.fields if field.nullable]
    decoder = ColumnDecoder(lambda _id: RAW_TRADE, types, None, nullable)
    values = [value for _key, value in encoded(wire_trades(int(count), currency), schema_id=1)]
    with ClickHouse(ClickHouseSettings(url=url)) as client:
        inserts = Inserts(client, table, shape, create=True)
        blocks: list[Prepared] = []
        for start in range(0, len(values), int(rows)):
            chosen: list[bytes | None] = [*values[start : start + int(rows)]]
            frame = decoder.decode(chosen, [None] * len(chosen)).frame
            blocks.append(inserts.prepare(frame.with_columns(**_place(table, start, frame.height))))
        began = time.perf_counter()
        for number, block in enumerate(blocks):
            inserts.write(block, str(number))
        seconds = time.perf_counter() - began
        found = int(client.rows(f"SELECT count() FROM {table}")[0][0])
    assert found == len(values), "not every row is there"
    print(json.dumps({"records": len(values), "seconds": seconds}))


def _place(topic: str, start: int, count: int) -> dict[str, Any]:
    return {
        KAFKA_PLACE.topic: pl.repeat(topic, count, dtype=pl.String, eager=True),
        KAFKA_PLACE.partition: pl.repeat(0, count, dtype=pl.Int64, eager=True),
        KAFKA_PLACE.offset: pl.Series(np.arange(start, start + count)),
        KAFKA_PLACE.timestamp: pl.repeat(1_700_000_000_000, count, dtype=pl.Int64, eager=True),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
