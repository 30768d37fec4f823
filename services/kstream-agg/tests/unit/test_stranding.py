from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from kstream_agg.core.errors import DeliveryError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka import transactions
from kstream_agg.kafka.stranding import StrandingWatch, answers_newcomers
from kstream_agg.kafka.transactions import TransactionWriter


def report(*states: str) -> str:
    return json.dumps({"brokers": {str(n): {"state": s} for n, s in enumerate(states)}})


class Kafka:
    """Answers a new client, or does not."""

    def __init__(self) -> None:
        self.answers = False

    def __call__(self) -> bool:
        return self.answers


def reports_until_stranded(watch: StrandingWatch, most: int, *states: str) -> int | None:
    for number in range(1, most + 1):
        watch.take(report(*states))
        if watch.is_stranded():
            return number
    return None


def test_an_outage_is_no_stranding_however_long() -> None:
    watch = StrandingWatch(Kafka())
    assert reports_until_stranded(watch, 1000, "DOWN", "TRY_CONNECT") is None


def test_a_client_with_a_broker_is_not_stranded_though_it_waits() -> None:
    kafka = Kafka()
    kafka.answers = True
    assert reports_until_stranded(StrandingWatch(kafka), 100, "DOWN", "UP") is None


def test_a_client_without_brokers_is_stranded_a_minute_after_others_find_them() -> None:
    kafka = Kafka()
    watch = StrandingWatch(kafka)
    assert reports_until_stranded(watch, 100, "DOWN") is None
    kafka.answers = True
    found = reports_until_stranded(watch, 100)
    assert found is not None
    assert 12 <= found <= 14  # reports, 5 s apart


def test_a_client_that_finds_back_in_time_goes_on() -> None:
    kafka = Kafka()
    watch = StrandingWatch(kafka)
    reports_until_stranded(watch, 100, "DOWN")
    kafka.answers = True
    assert reports_until_stranded(watch, 10, "DOWN") is None
    assert reports_until_stranded(watch, 1, "UP") is None
    assert reports_until_stranded(watch, 12, "DOWN") is None


def test_nobody_answers_at_a_closed_port() -> None:
    assert not answers_newcomers(KafkaSettings(bootstrap_servers="127.0.0.1:1"), timeout_s=0.1)


class LostProducer:
    """A client that never gets a transaction through, and reports so."""

    def __init__(self, properties: dict[str, Any]) -> None:
        self._properties = properties

    def begin_transaction(self) -> None:
        pass

    def produce(self, *args: object, **more: object) -> None:
        pass

    def poll(self, _seconds: float) -> None:
        self._properties["stats_cb"](report("DOWN"))

    def commit_transaction(self, _seconds: float) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, retriable=True))


def test_a_commit_that_can_never_come_ends_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "answers_newcomers", lambda _: True)
    writer = TransactionWriter(
        KafkaSettings(),
        Metrics(),
        "test",
        "test",
        make_producer=LostProducer,  # type: ignore[arg-type]  # what it uses of one
    )
    writer.produce("topic", b"value")
    with pytest.raises(DeliveryError, match="finds no broker any more"):
        writer.commit(lambda: True)
