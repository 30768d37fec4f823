"""The raw JDBC sink: rows/s from a topic that is there already into Postgres."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Self

import httpx2
import psutil
from psycopg import sql

from kstream_agg.core.errors import ContractError, UnavailableError
from kstream_agg.core.names import channel_topic, table_name
from kstream_agg.core.settings import PostgresSettings
from kstream_agg.sinks.connect_api import ConnectClient
from kstream_agg.sinks.postgres import connect
from kstream_agg.sinks.settings import RAW_SINK
from kstream_agg.stack import control
from measurement import Measurement
from processes import Pass, Service, reference, say, watch
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import psycopg

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_ROWS: Final = 200_000
_FLOOR: Final = 12_000
_PAUSE_WITHIN_S: Final = 30.0


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Sink `runs` topics, one after the other, into a table each."""
    currencies = [f"SINK{run}" for run in range(1, runs + 1)]
    _apply(endpoints, folder, currencies)
    postgres = PostgresSettings(
        port=endpoints.postgres_port, password_file=endpoints.postgres_password_file
    )
    address = (endpoints.postgres_port, endpoints.postgres_password_file)
    worker = _connect_process(endpoints)
    passes, bare = [], []
    with connect(postgres) as connection, _Connector(endpoints) as connector:
        for run, currency in enumerate(currencies, start=1):
            passes.append(_sink(endpoints, connector, connection, worker, currency))
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


class _Connector:
    """The raw sink in Connect, paused while its next topic is filled; a context manager."""

    def __init__(self, endpoints: StackEndpoints) -> None:
        self._client = ConnectClient(endpoints.connect_url, timeout_s=10)
        self._path = f"{endpoints.connect_url}/connectors/{RAW_SINK}"

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.__exit__(exc_type, exc, traceback)

    def pause(self) -> None:
        """Return once it stands still."""
        httpx2.put(f"{self._path}/pause", timeout=10, trust_env=False).raise_for_status()
        deadline = time.monotonic() + _PAUSE_WITHIN_S
        while {task.state for task in self._client.status(RAW_SINK).tasks} != {"PAUSED"}:
            if time.monotonic() > deadline:
                raise UnavailableError(f"{RAW_SINK} is not paused in {_PAUSE_WITHIN_S:.0f} s")
            time.sleep(0.1)

    def resume(self) -> None:
        """Let it go on."""
        httpx2.put(f"{self._path}/resume", timeout=10, trust_env=False).raise_for_status()


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
        if self._seen == 0 or self._last_rows() == len(self._names):
            self._seen = self.count()
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


def _apply(endpoints: StackEndpoints, folder: Path, currencies: list[str]) -> None:
    """Topics, tables and the project's own connectors, for all passes."""
    changes = {"CHANNELS": ",".join(map(_channel, currencies))}
    with Service(("connectors", "apply"), endpoints.environment, folder, changes) as applying:
        applying.wait_done()


def _channel(currency: str) -> str:
    return f"trades.option.{currency}.100ms"


def _sink(
    endpoints: StackEndpoints,
    connector: _Connector,
    connection: psycopg.Connection[Any],
    worker: psutil.Process,
    currency: str,
) -> Pass:
    """One pass: the topic is filled while the connector stands still."""
    topic = channel_topic(_channel(currency))
    connector.pause()
    last = prefill(endpoints, topic, _ROWS, currency)
    rows = _Rows(connection, table_name(topic), last)
    if rows() > 0:
        raise ContractError("the paused connector has written rows")
    connector.resume()
    return watch(rows, _ROWS, worker)


def _connect_process(endpoints: StackEndpoints) -> psutil.Process:
    process = control.read_status(endpoints.data_dir).component("connect").process
    assert process is not None, "Connect runs: the stack is ready"
    return psutil.Process(process.pid)
