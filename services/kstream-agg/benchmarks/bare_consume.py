"""The agg-producer's reference: a bare `consume(10000)` loop that touches every value.

`python bare_consume.py BOOTSTRAP TOPIC TOTAL` prints seconds and CPU-seconds from behind the first
batch to the last record.
"""

from __future__ import annotations

import json
import sys
import time
from uuid import uuid4

from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.reader import make_consumer


def main(bootstrap: str, topic: str, total: str) -> None:
    """Read the topic to its end, with the agg-producer's consumer settings."""
    settings = KafkaSettings(bootstrap_servers=bootstrap)
    consumer = make_consumer(settings, f"bare-{uuid4().hex}", "bench")
    consumer.subscribe([topic])
    wanted, seen, size = int(total), 0, 0
    first, began, cpu_began = 0, 0.0, 0.0
    while seen < wanted:
        for message in consumer.consume(10_000, 0.1):
            value = message.value()
            if message.error() is None and value is not None:
                size += len(value)
                seen += 1
        if first == 0 and seen > 0:
            first, began, cpu_began = seen, time.perf_counter(), time.process_time()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    consumer.close()
    found = {"records": seen - first, "seconds": seconds, "cpu_s": cpu_s, "bytes": size}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
