"""The batch-sink: trades/s from a topic that is there already into ClickHouse."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from kstream_agg.core.names import channel_topic, table_name
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.stack.clickhouse import ClickHouseServer
from measurement import Measurement
from processes import Service, reference, say, watch
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints
    from processes import Pass

__all__ = ["measure"]

_ROWS: Final = 500_000
_BATCH: Final = 10_000
# The last batch is not full and waits for its time, not for the sink: it is not counted.
_MORE: Final = 2 * _BATCH
_FLOOR: Final = 60_000
_CURRENCY: Final = "BATCH"
_URL: Final = "KSTREAM__CLICKHOUSE__URL"


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Sink one topic `runs` times, as another group into another table each."""
    channel = f"trades.option.{_CURRENCY}.100ms"
    topic = channel_topic(channel)
    say(f"batch_sink: filling {topic} with {_ROWS + _MORE:,} trades")
    prefill(endpoints, topic, _ROWS + _MORE, _CURRENCY)
    named = os.environ.get(_URL)
    if named:
        yield from _measure(endpoints, folder, runs, channel, named)
        return
    with ClickHouseServer(folder / "clickhouse") as server:
        yield from _measure(endpoints, folder, runs, channel, server.url)


def _measure(
    endpoints: StackEndpoints, folder: Path, runs: int, channel: str, url: str
) -> Iterator[Measurement]:
    passes: list[Pass] = []
    bare = []
    with ClickHouse(ClickHouseSettings(url=url)) as client:
        version = client.features().version
        for run in range(1, runs + 1):
            table = f"{table_name(channel_topic(channel))}_{os.getpid()}_{run}"
            changes = _changes(channel, url, table)
            with Service(("batch-sink",), endpoints.environment, folder, changes) as service:
                rows = _Rows(client, table)
                passes.append(watch(rows, _ROWS, service.process, exactly=False))
            bare_table = f"{table}_bare"
            bare.append(reference("bare_insert.py", url, bare_table, _ROWS, _CURRENCY, _BATCH))
            for done in (table, bare_table):
                client.execute(f"DROP TABLE {done}")
            say(
                f"batch_sink {run}/{runs}: {passes[-1].per_s:,.0f} trades/s, "
                f"bare inserts {bare[-1]['records'] / bare[-1]['seconds']:,.0f}"
            )
    yield Measurement(
        "batch_sink.trades_per_s",
        "trades/s",
        tuple(found.per_s for found in passes),
        tuple(found["records"] / found["seconds"] for found in bare),
        floor=_FLOOR,
        asked_ratio=0.5,
        details={"rows": _ROWS, "batch": _BATCH, "clickhouse": version},
    )
    yield Measurement(
        "batch_sink.cpu_s_per_million",
        "CPU-s/million",
        tuple(found.cpu_s_per_million for found in passes),
        better="lower",
    )
    yield Measurement(
        "batch_sink.rss_peak",
        "MB",
        tuple(found.rss_peak / 1e6 for found in passes),
        better="lower",
    )


def _changes(channel: str, url: str, table: str) -> dict[str, str]:
    return {
        "CHANNELS": channel,
        "SINK__GROUP_ID": table,
        "CLICKHOUSE__URL": url,
        "SINK__TABLE": table,
        "SINK__BATCH_COUNT": str(_BATCH),
        "PIPELINE__BATCH_RECORDS": str(_BATCH),
    }


class _Rows:
    """Counts the rows of a table, which an insert enters as a whole; 0 while there is none."""

    def __init__(self, client: ClickHouse, table: str) -> None:
        self._client = client
        self._table = table

    def __call__(self) -> int:
        found = self._client.rows(
            "SELECT count() FROM system.tables"
            f" WHERE database = currentDatabase() AND name = '{self._table}'"
        )
        if int(found[0][0]) == 0:
            return 0
        return int(self._client.rows(f"SELECT count() FROM {self._table}")[0][0])
