"""The raw-producer's reference: a bare `produce()` loop over values that are encoded already.

`python bare_produce.py BOOTSTRAP TOPIC RECORDING` prints seconds and CPU-seconds from the first
`produce()` until all is acknowledged.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec
from confluent_kafka import Producer

from workload import FRAME_TRADES, PRODUCER_DEFAULTS, encoded, frame_headers


def main(bootstrap: str, topic: str, recording: str) -> None:
    """Encode all, then produce all."""
    with Path(recording).open("rb") as lines:
        records = list(encoded(map(msgspec.json.decode, lines), schema_id=1))
    frames = [
        (frame_headers(start // FRAME_TRADES), records[start : start + FRAME_TRADES])
        for start in range(0, len(records), FRAME_TRADES)
    ]
    producer = Producer(PRODUCER_DEFAULTS | {"bootstrap.servers": bootstrap})
    producer.list_topics(topic, 10)  # connected, as the raw-producer is by then
    produce, poll = producer.produce, producer.poll
    began, cpu_began = time.perf_counter(), time.process_time()
    for headers, frame in frames:
        for key, value in frame:
            while True:
                try:
                    produce(topic, value, key, headers=headers)
                except BufferError:
                    poll(0.1)
                else:
                    break
        poll(0)
    assert producer.flush(60) == 0, "the broker did not take all"
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    print(json.dumps({"records": len(records), "seconds": seconds, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
