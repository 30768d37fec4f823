"""The raw JDBC sink: rows/s from a topic that is there already into Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psutil
from psycopg import sql

from kstream_agg.core.errors import ContractError
from kstream_agg.core.names import channel_topic, table_name
from kstream_agg.core.settings import PostgresSettings
from kstream_agg.sinks.postgres import connect
from kstream_agg.stack import control
from measurement import Measurement
from processes import Pass, Service, reference, say, watch
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import psycopg

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_ROWS: Final = 200_000
_FLOOR: Final = 12_000


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Sink `runs` topics, one after the other, into a table each."""
    postgres = PostgresSettings(
        port=endpoints.postgres_port, password_file=endpoints.postgres_password_file
    )
    worker = _connect_process(endpoints)
    passes, bare = [], []
    with connect(postgres) as connection:
        for run in range(1, runs + 1):
            passes.append(_sink(endpoints, folder, connection, worker, f"SINK{run}"))
            address = (endpoints.postgres_port, endpoints.postgres_password_file)
            bare.append(reference("bare_upsert.py", *address, f"bench-bare-{run}", _ROWS, "BARE"))
            say(
                f"sink {run}/{runs}: {passes[-1].per_s:,.0f} rows/s, "
                f"bare loop {bare[-1]['records'] / bare[-1]['seconds']:,.0f}"
            )
    yield Measurement(
        "sink.rows_per_s",
        "rows/s",
        tuple(found.per_s for found in passes),
        tuple(found["records"] / found["seconds"] for found in bare),
        floor=_FLOOR,
        details={"rows": _ROWS, "first_run": round(passes[0].per_s)},
    )
    yield Measurement(
        "sink.connect_cpu_s_per_million",
        "CPU-s/million",
        tuple(found.cpu_s_per_million for found in passes),
        better="lower",
    )


class _Rows:
    """Rows seen in the table, asked for cheaply: all are there when each key's last row is."""

    def __init__(
        self, connection: psycopg.Connection[Any], table: str, last: Mapping[str, int]
    ) -> None:
        self._connection = connection
        self._table = table
        self._names, self._seqs = list(last), list(last.values())
        self._seen = 0

    def __call__(self) -> int:
        if self._seen == 0:
            exists = self._connection.execute("SELECT to_regclass(%s)", (self._table,)).fetchone()
            if exists is not None and exists[0] is not None:
                self._seen = self.count()
        elif self._last_rows() == len(self._names):
            return self.count()
        return self._seen

    def count(self) -> int:
        """All rows of the table."""
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(self._table))
        return self._number(query)

    def _last_rows(self) -> int:
        query = sql.SQL(
            "SELECT count(*) FROM unnest(%s::text[], %s::bigint[]) AS last (name, seq)"
            " JOIN {} ON instrument_name = name AND trade_seq = seq"
        ).format(sql.Identifier(self._table))
        return self._number(query, self._names, self._seqs)

    def _number(self, query: sql.Composed, *values: object) -> int:
        row = self._connection.execute(query, values or None).fetchone()
        return int(row[0]) if row else 0


def _sink(
    endpoints: StackEndpoints,
    folder: Path,
    connection: psycopg.Connection[Any],
    worker: psutil.Process,
    currency: str,
) -> Pass:
    """One pass; the connector is told to read this topic and no other."""
    channel = f"trades.option.{currency}.100ms"
    topic = channel_topic(channel)
    last = prefill(endpoints, topic, _ROWS, currency)
    rows = _Rows(connection, table_name(topic), last)
    changes = {"CHANNELS": channel}
    with Service(("connectors", "apply"), endpoints.environment, folder, changes) as applying:

        def read() -> int:
            applying.check()
            return rows()

        found = watch(read, _ROWS, worker)
    if rows.count() != _ROWS:
        raise ContractError(f"{rows.count():,} rows of {_ROWS:,} trades")
    return found


def _connect_process(endpoints: StackEndpoints) -> psutil.Process:
    process = control.read_status(endpoints.data_dir).component("connect").process
    assert process is not None, "Connect runs: the stack is ready"
    return psutil.Process(process.pid)
