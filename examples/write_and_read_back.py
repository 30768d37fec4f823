"""Writes a reset message and 30,000 random payloads of 320 bytes, and reads them back in order.

    KAFKA_BROKERS=127.0.0.1:9092 python examples/write_and_read_back.py [TOPIC]

Without KAFKA_BROKERS it takes a broker on 127.0.0.1:9092.
"""

import random
import sys
import time
from collections.abc import Iterator

from kstream_agg.core.errors import KStreamError
from kstream_agg.kafka import KafkaCluster, Record, TopicConfiguration, TopicPartition

COUNT = 30_000
SIZE = 320
RESET = b"reset"


def payloads() -> Iterator[bytes]:
    """The same at each call: what is read can be compared."""
    chance = random.Random(0)  # noqa: S311 - payloads, not secrets
    return (chance.randbytes(SIZE) for _ in range(COUNT))


def main(topic: str) -> None:
    """Write, read, compare."""
    cluster = KafkaCluster(client_id="example")
    cluster.wait_for_brokers(timeout_s=15)
    cluster.create_topics([TopicConfiguration(topic)])
    partition = TopicPartition(topic, 0)

    with cluster.writer_for_partition(partition) as writer:
        reset = writer.produce_and_flush(Record(RESET))
        began = time.perf_counter()
        for payload in payloads():
            writer.produce(Record(payload))
        writer.flush()
    print(f"{COUNT / (time.perf_counter() - began):,.0f} records/s written")

    with cluster.reader_for_partition(partition, start=reset.offset) as reader:
        (first,) = reader.read(1)
        assert first.value == RESET  # noqa: S101 - it is what this program shows
        began = time.perf_counter()
        for payload, record in zip(payloads(), reader, strict=False):
            assert record.value == payload  # noqa: S101 - as above
    print(f"{COUNT / (time.perf_counter() - began):,.0f} records/s read, all as written")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "example")
    except KStreamError as error:
        sys.exit(f"error: {error}\nremedy: {error.remedy}")
