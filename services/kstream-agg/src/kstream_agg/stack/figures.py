"""Figures of the running pipeline: from the services' /metrics and from Postgres.

Whatever does not answer yet is None: the table that shows these is drawn while the stack starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx2
import psycopg
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from psycopg import sql

from kstream_agg.core import metrics as m
from kstream_agg.core.errors import KStreamError
from kstream_agg.core.names import table_name
from kstream_agg.sinks.postgres import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from kstream_agg.core.settings import PostgresSettings

__all__ = ["Figures", "FiguresReader"]

_SCRAPE_TIMEOUT_S: Final = 1.0
# Counting rows scans the table: past this the planner's estimate is shown instead.
_COUNT_TIMEOUT_MS: Final = 300
_EXACT_UP_TO: Final = 500_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What the pipeline has done so far, and how fast it is going."""

    trades_received: float | None = None
    trades_per_s: float | None = None
    source_lag_s: float | None = None
    session_up: bool | None = None
    records_behind: float | None = None
    windows_open: float | None = None
    windows_emitted: float | None = None
    late: float | None = None
    dead_letters: float | None = None
    rows: dict[str, int] | None = None
    """Rows of each table; negative: estimated."""


class FiguresReader:
    """Reads the figures; a context manager.

    Args:
        http_ports: Ports of the services' /metrics on 127.0.0.1.
        postgres: How to reach the database.
        topics: Those whose tables are counted.
        monotonic: Seconds; rates are differences between two reads.
    """

    def __init__(
        self,
        http_ports: Sequence[int],
        postgres: PostgresSettings,
        topics: Sequence[str],
        monotonic: Callable[[], float],
    ) -> None:
        self._ports = tuple(http_ports)
        self._postgres = postgres
        self._tables = tuple(table_name(topic) for topic in topics)
        self._monotonic = monotonic
        self._http = httpx2.Client(timeout=_SCRAPE_TIMEOUT_S, trust_env=False)
        self._connection: psycopg.Connection[Any] | None = None
        self._last: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()
        if self._connection is not None:
            self._connection.close()

    def read(self) -> Figures:
        """The figures now."""
        found: dict[str, float] = {}
        for port in self._ports:
            for name, value in self._scrape(port).items():
                found[name] = found.get(name, 0.0) + value
        received = found.get(m.TRADES_RECEIVED.name)
        up = found.get(m.SESSION_UP.name)
        # A counter with labels has no sample before its first event.
        none_yet = 0.0 if found else None
        return Figures(
            trades_received=received,
            trades_per_s=self._rate(received),
            source_lag_s=found.get(m.SOURCE_LAG_SECONDS.name),
            session_up=None if up is None else up > 0,
            records_behind=found.get(m.CONSUMER_LAG_RECORDS.name),
            windows_open=found.get(m.WINDOWS_OPEN.name),
            windows_emitted=found.get(m.WINDOWS_EMITTED.name),
            late=found.get(m.RECORDS_LATE.name, none_yet),
            dead_letters=found.get(m.DEAD_LETTERS.name, none_yet),
            rows=self._rows(),
        )

    def _scrape(self, port: int) -> dict[str, float]:
        try:
            answer = self._http.get(f"http://127.0.0.1:{port}/metrics")
            answer.raise_for_status()
        except httpx2.HTTPError:
            return {}
        return sum_by_family(answer.text)

    def _rate(self, received: float | None) -> float | None:
        now = self._monotonic()
        last, self._last = self._last, None if received is None else (now, received)
        if received is None or last is None or now <= last[0] or received < last[1]:
            return None
        return (received - last[1]) / (now - last[0])

    def _rows(self) -> dict[str, int] | None:
        try:
            if self._connection is None:
                self._connection = connect(self._postgres)
                self._connection.execute(f"SET statement_timeout = {_COUNT_TIMEOUT_MS}")
            counts = {table: self._count(self._connection, table) for table in self._tables}
            return {table: count for table, count in counts.items() if count is not None}
        except (KStreamError, psycopg.Error):
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            return None

    def _count(self, connection: psycopg.Connection[Any], table: str) -> int | None:
        estimate = connection.execute(
            "SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = %s", (table,)
        ).fetchone()
        if estimate is None:
            return None
        if estimate[0] <= _EXACT_UP_TO:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            try:
                row = connection.execute(query).fetchone()
            except psycopg.errors.QueryCanceled:
                return -int(estimate[0])
            return int(row[0]) if row else 0
        return -int(estimate[0])


def sum_by_family(text: str) -> dict[str, float]:
    """The values of an OpenMetrics text, summed over the labels of each family.

    Counters are read by their total, gauges as they stand; other kinds are passed over.
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]  # has no hints
        wanted = {"counter": f"{family.name}_total", "gauge": family.name}.get(family.type)
        values = [sample.value for sample in family.samples if sample.name == wanted]
        if values:
            found[re.sub(r"_total$", "", family.name)] = float(sum(values))
    return found
