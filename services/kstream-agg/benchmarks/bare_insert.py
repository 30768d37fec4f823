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

from kstream_agg.core.logs import configure_logging
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import LogSettings
from kstream_agg.sinks.avro_rows import RowsDecoder
from kstream_agg.sinks.batch_sink_blocks import shape_of
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.sinks.clickhouse_tables import KAFKA_PLACE, Inserts, Prepared
from kstream_agg.sinks.rows import Numbers, Rows, Texts
from workload import encoded, wire_trades


def main(url: str, table: str, count: str, currency: str, rows: str) -> None:
    """Make the blocks and the table, then insert."""
    configure_logging(LogSettings(level="warning"), "bare_insert")
    shape = shape_of(RAW_TRADE)
    decoder = RowsDecoder(RAW_TRADE)
    values = [value for _key, value in encoded(wire_trades(int(count), currency), schema_id=1)]
    with ClickHouse(ClickHouseSettings(url=url)) as client:
        inserts = Inserts(client, table, shape, create=True)
        blocks: list[Prepared] = []
        for start in range(0, len(values), int(rows)):
            made, _ = decoder.decode(values[start : start + int(rows)])
            place = _place(table, start, made.height)
            blocks.append(inserts.prepare([Rows({**place, **made.columns}, made.height)]))
        began = time.perf_counter()
        for number, block in enumerate(blocks):
            inserts.write(block, str(number))
        seconds = time.perf_counter() - began
        found = int(client.rows(f"SELECT count() FROM {table}")[0][0])
    assert found == len(values), "not every row is there"
    print(json.dumps({"records": len(values), "seconds": seconds}))


def _place(topic: str, start: int, count: int) -> dict[str, Any]:
    return {
        KAFKA_PLACE.topic: Texts.repeated(topic, count),
        KAFKA_PLACE.partition: Numbers(np.zeros(count, dtype=np.int64)),
        KAFKA_PLACE.offset: Numbers(np.arange(start, start + count)),
        KAFKA_PLACE.timestamp: Numbers(np.full(count, 1_700_000_000_000)),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
