"""The workers' snapshots as one set of metrics, under the reference's names.

Counters keep their names without `_total`: dashboards made for the reference go on working. The
OpenMetrics exposition has the type `unknown` for such samples.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.statistics import BROKER_METRICS, PRODUCER_METRICS, TOPIC_METRICS
from kstream_agg.proxy.tallies import HTTP_BUCKETS_MS, SEND_BUCKETS_MS, Distribution, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

__all__ = ["OWN_COUNTERS", "OWN_GAUGES", "ProxyCollector", "ask_workers"]

_log = get_logger(__name__)

_ANSWER_S: Final = 2.0
_decode: Final = msgspec.msgpack.Decoder(Snapshot).decode

OWN_GAUGES: Final = {
    "push_proxy_wal_bytes": "Bytes of records in the log",
    "push_proxy_wal_backlog_batches": "Batches in the log that wait to be sent again",
    "push_proxy_requests_in_progress": "Requests that are not answered yet",
    "push_proxy_connections": "Open connections",
    "push_proxy_kafka_away": "1 while no broker is connected, by worker summed up",
}
OWN_COUNTERS: Final = {
    "push_proxy_wal_written_records": "Records written to the log",
    "push_proxy_wal_resent_records": "Records delivered from the log",
    "push_proxy_wal_parked_records": "Records set aside because Kafka will never take them",
    "push_proxy_client_limited_requests": "Requests refused for their client's rate limit",
}


def ask_workers(folder: Path) -> tuple[list[Snapshot], list[str]]:
    """Ask every worker for its numbers.

    Args:
        folder: Where their sockets are, `PID.sock`.

    Returns:
        The snapshots, and which workers do not answer.
    """
    found, silent = [], []
    for path in sorted(folder.glob("*.sock")):
        try:
            found.append(_decode(_read(path)))
        except (OSError, msgspec.DecodeError):
            if _is_alive(int(path.stem)):
                silent.append(f"worker {path.stem} does not answer")
            else:
                path.unlink(missing_ok=True)
    return found, silent


class ProxyCollector(Collector):
    """Adds the workers' numbers up at each scrape.

    Args:
        ask: Gives the workers' snapshots.
        version: Of this package.
        commit: The commit it was built from, or `unknown`.
    """

    def __init__(self, ask: Callable[[], Sequence[Snapshot]], version: str, commit: str) -> None:
        self._ask = ask
        self._version = version
        self._commit = commit

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        snapshots = self._ask()
        yield _requests(snapshots)
        yield from _topics(snapshots)
        yield from _statistics(snapshots)
        for name, text in OWN_GAUGES.items():
            total = sum(snapshot.gauges.get(name, 0.0) for snapshot in snapshots)
            yield GaugeMetricFamily(name, text, value=total)
        for name, text in OWN_COUNTERS.items():
            plain = Metric(name, text, "unknown")
            plain.add_sample(name, {}, sum(s.counters.get(name, 0) for s in snapshots))
            yield plain
        about = GaugeMetricFamily(
            "kprf_app_metadata",
            "Version and commit of the proxy",
            labels=["commit_hash", "version"],
        )
        about.add_metric([self._commit, self._version], 1)
        yield about


def _requests(snapshots: Sequence[Snapshot]) -> Metric:
    family = HistogramMetricFamily(
        "http_requests_duration",
        "Duration of HTTP requests in milliseconds",
        labels=["code", "method"],
    )
    for key in sorted({key for snapshot in snapshots for key in snapshot.requests}):
        method, code = key.split(" ")
        parts = [s.requests[key] for s in snapshots if key in s.requests]
        _add_histogram(family, [code, method], parts, HTTP_BUCKETS_MS)
    return family


def _topics(snapshots: Sequence[Snapshot]) -> Iterable[Metric]:
    queued = GaugeMetricFamily(
        "kafka_internal_queue_size", "Records without a delivery report", labels=["topic"]
    )
    durations = HistogramMetricFamily(
        "kafka_message_send_duration",
        "Time until the delivery report, in milliseconds",
        labels=["topic"],
    )
    sent = Metric("kafka_sent_messages", "Records handed to the producer", "unknown")
    errors = Metric("kafka_errors_count", "Records that failed, by librdkafka's error", "unknown")
    limited = Metric("ratelimit_messages_count", "Records refused for a rate limit", "unknown")
    for name in sorted({name for snapshot in snapshots for name in snapshot.topics}):
        parts = [s.topics[name] for s in snapshots if name in s.topics]
        queued.add_metric([name], sum(part.queued for part in parts))
        _add_histogram(durations, [name], [part.durations for part in parts], SEND_BUCKETS_MS)
        sent.add_sample(sent.name, {"topic": name}, sum(part.sent for part in parts))
        limited.add_sample(limited.name, {"topic": name}, sum(part.limited for part in parts))
        for code in sorted({code for part in parts for code in part.errors}):
            labels = {"topic": name, "error_code": str(code)}
            errors.add_sample(errors.name, labels, sum(p.errors.get(code, 0) for p in parts))
    return queued, durations, sent, errors, limited


def _statistics(snapshots: Sequence[Snapshot]) -> Iterable[Metric]:
    for name, (_field, text) in PRODUCER_METRICS.items():
        total = sum(snapshot.producer.get(name, 0.0) for snapshot in snapshots)
        yield GaugeMetricFamily(name, text, value=total)
    for name, (_field, text) in BROKER_METRICS.items():
        # A state is one worker's; of the others the sum says something.
        reduce: Any = max if "state" in name else sum
        values = [snapshot.brokers.get(name, {}) for snapshot in snapshots]
        yield _labelled(name, text, "broker", values, reduce)
    for name, (_field, text) in TOPIC_METRICS.items():
        values = [snapshot.producer_topics.get(name, {}) for snapshot in snapshots]
        yield _labelled(name, text, "topic", values, max)


def _labelled(
    name: str,
    text: str,
    label: str,
    values: Sequence[dict[str, float]],
    reduce: Callable[[Iterable[float]], float],
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key in sorted({key for part in values for key in part}):
        family.add_metric([key], reduce([part[key] for part in values if key in part]))
    return family


def _add_histogram(
    family: HistogramMetricFamily,
    labels: list[str],
    parts: Sequence[Distribution],
    bounds: Sequence[float],
) -> None:
    buckets, running = [], 0
    for place, bound in enumerate([*(str(bound) for bound in bounds), "+Inf"]):
        running += sum(part.counts[place] for part in parts)
        buckets.append((bound, float(running)))
    family.add_metric(labels, buckets, sum_value=sum(part.total for part in parts))


def _read(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(path))
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
