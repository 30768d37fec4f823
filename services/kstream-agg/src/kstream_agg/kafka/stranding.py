"""Telling a client that has lost its way from a Kafka that is away.

librdkafka forgets all brokers when a broker that is starting names none in its metadata, as a
single broker does until its controller lets it serve, and then never asks again
(https://github.com/confluentinc/librdkafka/issues/5301, seen with 2.16.0). Such a client waits for
ever while Kafka answers everybody else; only a new client mends it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.core.settings import KafkaSettings

__all__ = ["StrandingWatch", "answers_newcomers"]

_INTERVAL_MS: Final = 5000
# Connections come back within seconds of a broker: `reconnect.backoff.max.ms` is 10 s.
_REPORTS: Final = 12
_ANSWER_S: Final = 5.0


class StrandingWatch:
    """Counts a client's reports of its own connections; used from the client's thread.

    Args:
        newcomer: Whether Kafka answers a client that begins now.
    """

    def __init__(self, newcomer: Callable[[], bool]) -> None:
        self._newcomer = newcomer
        self._without_broker = 0
        # How many reports there had been when a new client first found brokers.
        self._answered_at: int | None = None

    @property
    def properties(self) -> dict[str, object]:
        """What the client is to be made with."""
        return {"statistics.interval.ms": _INTERVAL_MS, "stats_cb": self.take}

    def take(self, report: str) -> None:
        """One of librdkafka's statistics, a JSON text."""
        brokers = json.loads(report)["brokers"].values()
        connected = any(broker["state"] == "UP" for broker in brokers)
        self._without_broker = 0 if connected else self._without_broker + 1

    def is_stranded(self) -> bool:
        """Whether the client is without a broker for good, though Kafka answers.

        Asked every second or so. Kafka may have come back just now: only a client that has found
        no broker for a whole minute after a new client did counts as stranded.
        """
        if self._without_broker < _REPORTS:
            self._answered_at = None
            return False
        if self._answered_at is None:
            if self._without_broker % 2 == 0 and self._newcomer():
                self._answered_at = self._without_broker
            return False
        return self._without_broker >= self._answered_at + _REPORTS and self._newcomer()


def answers_newcomers(settings: KafkaSettings, timeout_s: float = _ANSWER_S) -> bool:
    """Whether a client that begins now is told of brokers within the time (s)."""
    try:
        with AdminClient({**settings.client_config(), "log_level": 0}) as client:
            return bool(client.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False
