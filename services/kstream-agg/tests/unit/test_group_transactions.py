"""A client that hangs is left behind; its successor goes on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from kstream_agg.core.errors import CommitUncertainError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.group_transactions import GroupTransactionWriter


class HangingProducer:
    """Its coordinator has gone for good."""

    def __init__(self, released: threading.Event) -> None:
        self.released = released
        self.calls: list[str] = []

    def produce(self, *_arguments: object, **_named: object) -> None:
        self.calls.append("produce")

    def __len__(self) -> int:
        return 0

    def begin_transaction(self) -> None:
        self.calls.append("begin")

    def send_offsets_to_transaction(self, *_arguments: object) -> None:
        self.calls.append("offsets")
        self.released.wait(60)
        self.calls.append("late")

    def abort_transaction(self, _timeout: float) -> None:
        self.calls.append("abort")


class Member:
    def consumer_group_metadata(self) -> object:
        return object()


def test_offsets_that_are_never_answered_do_not_hold_up_the_loop() -> None:
    released = threading.Event()
    producer = HangingProducer(released)
    writer: Any = GroupTransactionWriter(
        KafkaSettings(),
        Metrics(CollectorRegistry()),
        "test",
        "test-1",
        make_producer=lambda _config: producer,  # type: ignore[arg-type,return-value]  # a double
        hung_s=0.01,
    )
    with pytest.raises(CommitUncertainError, match="waits for a coordinator"):
        writer.send_offsets(Member(), [TopicPartition("t", 0, 1)], lambda: True)
    writer.abandon()
    # A call that has not come back would be disturbed: nothing is asked of this client any more.
    assert producer.calls == ["begin", "offsets"]
    assert writer.pending == 0
    released.set()
