"""Writing and reading 320-byte records: by the API, and by bare loops of its client library.

`python client_loops.py HOW BOOTSTRAP TOPIC COUNT` prints seconds and CPU-seconds, from the first
record until all are acknowledged, or from behind the first record to the last. HOW is `write`,
`bare_write`, `read` or `bare_read`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from uuid import uuid4

from confluent_kafka import Producer
from confluent_kafka import TopicPartition as Partition

from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka import KafkaCluster, Record, TopicPartition
from kstream_agg.kafka.reader import make_consumer
from workload import PRODUCER_DEFAULTS

_SIZE = 320
_RESET = b"reset"


def payloads(count: int) -> list[bytes]:
    """Random bytes, made before the clock runs."""
    chance = random.Random(0)  # noqa: S311 - payloads, not secrets
    return [chance.randbytes(_SIZE) for _ in range(count)]


def bare_write(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """A `produce()` loop without any callback, with the API's settings."""
    values = payloads(count)
    producer = Producer(PRODUCER_DEFAULTS | {"bootstrap.servers": bootstrap})
    produce, poll = producer.produce, producer.poll
    produce(topic, _RESET, partition=0)
    assert producer.flush(60) == 0
    clock = _Clock()
    for value in values:
        while True:
            try:
                produce(topic, value, partition=0)
            except BufferError:
                poll(0.1)
            else:
                break
    assert producer.flush(60) == 0, "the broker did not take all"
    return clock.read(count)


def write(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """The API's writer; the outcome of each record can be asked for."""
    values = payloads(count)
    with KafkaCluster(bootstrap, "bench").writer_for_partition(TopicPartition(topic, 0)) as writer:
        writer.produce_and_flush(Record(_RESET))
        clock = _Clock()
        for value in values:
            writer.produce(Record(value))
        writer.flush()
        return clock.read(count)


def bare_read(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """A `consume()` loop that touches every value, with the API's settings."""
    consumer = make_consumer(
        KafkaSettings(bootstrap_servers=bootstrap), f"bare-{uuid4().hex}", "bench"
    )
    consumer.assign([Partition(topic, 0, 0)])
    assert consumer.consume(1, 30)
    clock, seen, size = _Clock(), 1, 0
    while seen < count:
        for message in consumer.consume(10_000, 0.1):
            value = message.value()
            if message.error() is None and value is not None:
                size += len(value)
                seen += 1
    found = clock.read(seen - 1)
    consumer.close()
    return found


def read(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """The API's reader, touching every value."""
    cluster = KafkaCluster(bootstrap, "bench")
    with cluster.reader_for_partition(TopicPartition(topic, 0), "earliest") as reader:
        assert reader.read(1, 30)
        clock, seen, size = _Clock(), 1, 0
        for record in reader:
            size += len(record.value or b"")
            seen += 1
            if seen == count:
                break
        return clock.read(seen - 1)


class _Clock:
    def __init__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def read(self, records: int) -> dict[str, float]:
        return {
            "records": records,
            "seconds": time.perf_counter() - self._began,
            "cpu_s": time.process_time() - self._cpu_began,
        }


if __name__ == "__main__":
    loops = {"write": write, "bare_write": bare_write, "read": read, "bare_read": bare_read}
    print(json.dumps(loops[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]))))
