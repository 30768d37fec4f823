"""What one worker counts: plain numbers in the hot path, a snapshot for whoever asks.

The names are the reference's; `figures` turns the snapshots of all workers into metrics.
Durations are in milliseconds, as there.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

__all__ = [
    "HTTP_BUCKETS_MS",
    "SEND_BUCKETS_MS",
    "Distribution",
    "Snapshot",
    "Tallies",
    "TopicSnapshot",
    "TopicTally",
]

HTTP_BUCKETS_MS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)
SEND_BUCKETS_MS: Final = (5.0, 10.0, 20.0, 40.0, 80.0)  # the reference's


class Distribution(msgspec.Struct):
    """A histogram: how many fell into each bucket, the last one open, and their sum."""

    counts: list[int]
    total: float = 0.0


class TopicSnapshot(msgspec.Struct):
    """A topic's numbers.

    Args:
        sent: Records handed to the producer.
        queued: Those of them without a delivery report yet.
        durations: Time from there to the report, in ms.
        errors: Failed records by librdkafka's error code.
        limited: Records refused for the topic's rate limit.
    """

    sent: int
    queued: int
    durations: Distribution
    errors: dict[int, int]
    limited: int


class Snapshot(msgspec.Struct):
    """Everything one worker reports.

    Args:
        pid: Which process.
        topics: By topic.
        requests: Durations in ms by `(method label, status)` joined with a space.
        producer: Values without labels, of librdkafka's statistics, by metric name.
        brokers: Values by metric name and broker.
        producer_topics: Values by metric name and topic.
        gauges: Our own gauges by metric name.
        counters: Our own counters by metric name.
        problems: What makes the worker unhealthy.
        not_ready: Why it does not serve yet; None when it does.
    """

    pid: int
    topics: dict[str, TopicSnapshot]
    requests: dict[str, Distribution]
    producer: dict[str, float]
    brokers: dict[str, dict[str, float]]
    producer_topics: dict[str, dict[str, float]]
    gauges: dict[str, float]
    counters: dict[str, int]
    problems: list[str]
    not_ready: str | None


class TopicTally:
    """A known topic: its partitions, and what is counted of it. Touched for every record."""

    __slots__ = ("counts", "done", "duration_ms", "errors", "limited", "name", "partitions", "sent")

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.partitions = partitions
        self.sent = 0
        self.done = 0
        self.limited = 0
        self.duration_ms = 0.0
        self.counts = [0] * (len(SEND_BUCKETS_MS) + 1)
        self.errors: dict[int, int] = {}

    def reported(self, latency_s: float, error_code: int | None) -> None:
        """Count a delivery report."""
        self.done += 1
        milliseconds = latency_s * 1000
        self.duration_ms += milliseconds
        self.counts[bisect_left(SEND_BUCKETS_MS, milliseconds)] += 1
        if error_code is not None:
            self.errors[error_code] = self.errors.get(error_code, 0) + 1

    def snapshot(self) -> TopicSnapshot:
        """The numbers now."""
        return TopicSnapshot(
            self.sent,
            self.sent - self.done,
            Distribution(list(self.counts), self.duration_ms),
            dict(self.errors),
            self.limited,
        )


class Tallies:
    """All that a worker counts but its topics' numbers."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], Distribution] = {}
        self.counters: dict[str, int] = {}

    def answered(self, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        found = self.requests.get((method, status))
        if found is None:
            found = Distribution([0] * (len(HTTP_BUCKETS_MS) + 1))
            self.requests[(method, status)] = found
        milliseconds = seconds * 1000
        found.counts[bisect_left(HTTP_BUCKETS_MS, milliseconds)] += 1
        found.total += milliseconds

    def count(self, name: str, amount: int = 1) -> None:
        """Count something of our own."""
        self.counters[name] = self.counters.get(name, 0) + amount
