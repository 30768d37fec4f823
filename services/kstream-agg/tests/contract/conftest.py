"""A broker to test against: the in-memory one and a real one, behind the same few calls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.pipeline.run import Clients
from kstream_agg.pipeline.testing import MemoryBroker, memory_clients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confluent_kafka import Consumer, Message, Producer

    from kstream_agg.stack.endpoints import StackEndpoints

DEADLINE_S = 60.0


class Bed:
    """A broker's clients; those still open are closed at the end."""

    def __init__(
        self, clients: Clients, settings: KafkaSettings, unique: Callable[[str], str]
    ) -> None:
        self.clients = clients
        self.settings = settings
        self.unique = unique
        self._consumers: list[Consumer] = []

    def topic(self, partitions: int = 1) -> str:
        raise NotImplementedError

    def consumer(self, group: str) -> Consumer:
        consumer = make_consumer(self.settings, group, "contract", self.clients.consumer)
        self._consumers.append(consumer)
        return consumer

    def producer(self, **properties: Any) -> Producer:  # noqa: ANN401 - librdkafka's, checked by it
        config = {name.replace("_", "."): value for name, value in properties.items()}
        own = {"bootstrap.servers": self.settings.bootstrap_servers}
        return self.clients.producer(own | {"partitioner": "murmur2_random"} | config)

    def send(self, topic: str, *values: bytes | None, partition: int = 0) -> None:
        producer = self.producer()
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(DEADLINE_S) == 0

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.close()


class MemoryBed(Bed):
    def __init__(self, unique: Callable[[str], str]) -> None:
        self.broker = MemoryBroker(waits=True)
        super().__init__(memory_clients(self.broker), KafkaSettings(), unique)

    def topic(self, partitions: int = 1) -> str:
        name = self.unique("contract")
        self.broker.create_topic(name, partitions)
        return name


class KafkaBed(Bed):
    def __init__(self, stack: StackEndpoints, unique: Callable[[str], str]) -> None:
        settings = KafkaSettings(
            bootstrap_servers=stack.bootstrap_servers,
            # A member that leaves or comes is noticed by the others as fast as that.
            properties={"heartbeat.interval.ms": 200},
        )
        super().__init__(Clients(), settings, unique)

    def topic(self, partitions: int = 1) -> str:
        name = self.unique("contract")
        config = {"message.timestamp.type": "LogAppendTime"}
        KafkaCluster(self.settings, "contract").create_topics(
            [TopicConfiguration(name, partitions, config=config)]
        )
        return name


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.stack)])
def bed(request: pytest.FixtureRequest, unique: Callable[[str], str]) -> Iterator[Bed]:
    made: Bed
    if request.param == "memory":
        made = MemoryBed(unique)
    else:
        made = KafkaBed(cast("StackEndpoints", request.getfixturevalue("stack")), unique)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def until() -> Callable[..., None]:
    """Calls a step until a condition holds."""

    def wait(condition: Callable[[], object], step: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "it does not come true"
            step()

    return wait


@pytest.fixture
def read() -> Callable[[Consumer, int], list[Message]]:
    """Reads so many records; ends of partitions are passed over."""

    def wait(consumer: Consumer, count: int) -> list[Message]:
        found: list[Message] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} records"
            polled = consumer.consume(count - len(found), 0.1)
            found += [message for message in polled if message.error() is None]
        return found

    return wait
