"""The one table of metrics: name, kind, help text, labels.

A service makes one `Metrics` and asks it for what it counts: `metrics.counter(TRADES_RECEIVED)`.
A name that is not in this table does not type-check. Names follow the OpenMetrics conventions:
base units, `_total` is added to counters by the exposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
)

__all__ = ["CounterDef", "GaugeDef", "HistogramDef", "Metrics"]


@dataclass(frozen=True, slots=True)
class CounterDef:
    """A number that only grows."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GaugeDef:
    """A number that goes up and down."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HistogramDef:
    """A distribution over fixed buckets."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = Histogram.DEFAULT_BUCKETS


# --- kafka ---------------------------------------------------------------------------------
RECORDS_DELIVERED: Final = CounterDef(
    "kstream_records_delivered", "Records Kafka has acknowledged", ("topic",)
)
RECORDS_FAILED: Final = CounterDef(
    "kstream_records_failed", "Records Kafka did not take", ("topic",)
)
RECORDS_IN_FLIGHT: Final = GaugeDef(
    "kstream_records_in_flight", "Records handed to the producer and not yet acknowledged"
)
DEAD_LETTERS: Final = CounterDef(
    "kstream_dead_letters", "Records and frames put into a dead-letter topic", ("topic", "stage")
)

# --- raw-producer --------------------------------------------------------------------------
FRAMES_RECEIVED: Final = CounterDef("kstream_frames_received", "Websocket frames read")
TRADES_RECEIVED: Final = CounterDef(
    "kstream_trades_received", "Trades decoded from frames", ("channel",)
)
UNKNOWN_KEYS: Final = CounterDef(
    "kstream_unknown_keys", "Trades that carried keys the schema does not know"
)
SESSION_CONNECTS: Final = CounterDef("kstream_session_connects", "Exchange sessions opened")
SESSION_UP: Final = GaugeDef(
    "kstream_session_up", "1 while every asked-for channel is subscribed, else 0"
)
SOURCE_LAG_SECONDS: Final = GaugeDef(
    "kstream_source_lag_seconds", "Receipt time less exchange time of the last trade"
)
SOURCE_HOLES: Final = GaugeDef(
    "kstream_source_holes", "Runs of missing trades that are being looked for", ("topic",)
)
SOURCE_GAPS: Final = CounterDef(
    "kstream_source_gaps",
    "Trades that are missing for good and named in the gaps topic",
    ("topic",),
)
TRADES_BACKFILLED: Final = CounterDef(
    "kstream_trades_backfilled", "Trades that came from the exchange's history", ("topic",)
)
TRADES_REPEATED: Final = CounterDef(
    "kstream_trades_repeated", "Trades received again and not written again", ("topic",)
)
HISTORY_REQUESTS: Final = CounterDef(
    "kstream_history_requests", "Calls of the exchange's history", ("host", "outcome")
)
COMMIT_SECONDS: Final = HistogramDef(
    "kstream_source_commit_seconds",
    "From a transaction's first receipt to its commit",
    buckets=(0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.25, 1.0, 5.0, 60.0),
)

# --- agg-producer --------------------------------------------------------------------------
RECORDS_CONSUMED: Final = CounterDef(
    "kstream_records_consumed", "Records read from a topic", ("topic",)
)
CONSUMER_LAG_RECORDS: Final = GaugeDef(
    "kstream_consumer_lag_records", "Records behind the end of a partition", ("topic", "partition")
)
CONSUMER_PAUSED: Final = GaugeDef(
    "kstream_consumer_paused", "1 while reading is paused because something does not answer"
)
WINDOWS_OPEN: Final = GaugeDef("kstream_windows_open", "Windows held in memory")
WINDOWS_EMITTED: Final = CounterDef(
    "kstream_windows_emitted", "Window results produced", ("closed_by",)
)
RECORDS_LATE: Final = CounterDef(
    "kstream_records_late", "Records sent to the late topic", ("reason",)
)
RECORDS_REPEATED: Final = CounterDef(
    "kstream_records_repeated", "Repeats of (instrument_name, trade_seq) that were dropped"
)
WINDOWS_RETAINED: Final = GaugeDef(
    "kstream_windows_retained", "Closed windows kept for late records"
)
COMMITS: Final = CounterDef("kstream_commits", "Transactions of the consumer loop", ("outcome",))
RESTORE_SECONDS: Final = HistogramDef(
    "kstream_restore_seconds",
    "Time to restore a partition's state from its changelog",
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
BATCH_SECONDS: Final = HistogramDef(
    "kstream_batch_seconds", "Time to process one batch, from hand-over to results produced"
)

# --- pipelines -----------------------------------------------------------------------------
STEP_FAILURES: Final = CounterDef(
    "kstream_step_failures", "Records handed to the error step", ("step",)
)
STEP_WAITING_RECORDS: Final = GaugeDef(
    "kstream_step_waiting_records", "Records that wait in front of a step", ("step",)
)

# --- batch-sink ----------------------------------------------------------------------------
SINK_ROWS: Final = CounterDef(
    "kstream_sink_rows", "Rows that ClickHouse has taken; one sent again counts again", ("table",)
)
SINK_INSERTS: Final = CounterDef(
    "kstream_sink_inserts",
    "Inserts: written, refused (data, size, missing), and those that found the server unavailable",
    ("outcome",),
)
SINK_INSERT_SECONDS: Final = HistogramDef(
    "kstream_sink_insert_seconds", "Time that ClickHouse takes for an insert"
)
SINK_WAITING: Final = GaugeDef(
    "kstream_sink_waiting", "1 while a batch is kept because ClickHouse does not take it"
)

# --- connectors-watch ----------------------------------------------------------------------
SINK_RUNNING: Final = GaugeDef(
    "kstream_sink_running", "1 while the connector and all its tasks run, else 0", ("connector",)
)
SINK_STEPS: Final = CounterDef(
    "kstream_sink_steps",
    "Steps taken to get a failed sink going again (restart, narrow, …)",
    ("connector", "step"),
)

# --- deribit-simulator ---------------------------------------------------------------------
SIMULATOR_TRADES: Final = GaugeDef(
    "kstream_simulator_trades", "Trades that have happened on the simulated exchange"
)
SIMULATOR_CONNECTIONS: Final = GaugeDef(
    "kstream_simulator_connections", "Open websocket connections to the simulated exchange"
)


class Metrics:
    """Makes the metrics of one service in a registry of its own.

    Args:
        registry: Where they are collected; by default a new one with the process's own
            CPU, memory and file descriptors.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        if registry is None:
            registry = CollectorRegistry()
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
                registry.register(collector)
        self.registry = registry
        self._made: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, definition: CounterDef) -> Counter:
        """The counter of this definition; the same one at every call."""
        made = self._made.get(definition.name)
        if not isinstance(made, Counter):
            made = Counter(
                definition.name, definition.help, definition.labels, registry=self.registry
            )
            self._made[definition.name] = made
        return made

    def gauge(self, definition: GaugeDef) -> Gauge:
        """The gauge of this definition; the same one at every call."""
        made = self._made.get(definition.name)
        if not isinstance(made, Gauge):
            made = Gauge(
                definition.name, definition.help, definition.labels, registry=self.registry
            )
            self._made[definition.name] = made
        return made

    def histogram(self, definition: HistogramDef) -> Histogram:
        """The histogram of this definition; the same one at every call."""
        made = self._made.get(definition.name)
        if not isinstance(made, Histogram):
            made = Histogram(
                definition.name,
                definition.help,
                definition.labels,
                registry=self.registry,
                buckets=definition.buckets,
            )
            self._made[definition.name] = made
        return made
