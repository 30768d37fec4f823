"""A pipeline over a topic: map, batch, and a step that counts.

`python pipeline_consume.py BOOTSTRAP TOPIC TOTAL MAP THREADS` prints seconds and CPU-seconds from
behind the first batch to the last record. MAP is `touch` (the value's size), `json` (Python that
keeps the interpreter's lock), `zlib` (C that lets it go) or `wait` (a look-up of a millisecond).
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from typing import TYPE_CHECKING
from uuid import uuid4

from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.logs import configure_logging
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import KafkaSettings, LogSettings
from kstream_agg.pipeline import Batch, Each, EngineSettings, Pipeline, PipelineSettings
from kstream_agg.pipeline.run import Member

if TYPE_CHECKING:
    from confluent_kafka import Message


def touch(message: Message) -> int:
    """The value's size."""
    return len(message.value() or b"")


def parse_json(message: Message) -> int:
    """Encode and decode some JSON: interpreter work."""
    return len(json.loads(json.dumps({"value": str(message.value()), "more": [1, 2, 3]})))


def deflate(message: Message) -> int:
    """Compress 8 KiB made of the value: work outside of the interpreter."""
    return len(zlib.compress((message.value() or b"") * 80))


def look_up(message: Message) -> int:
    """Wait a millisecond, as for an answer over the network."""
    time.sleep(0.001)
    return touch(message)


_MAPS = {"touch": touch, "json": parse_json, "zlib": deflate, "wait": look_up}


def main(bootstrap: str, topic: str, total: str, how: str, threads: str) -> None:
    """Read the topic to its end."""
    configure_logging(LogSettings(level="warning"), "bench")
    wanted, seen, size = int(total), 0, 0
    first, began, cpu_began = 0, 0.0, 0.0

    def count(batch: list[int]) -> None:
        nonlocal seen, size
        seen += len(batch)
        size += sum(batch)

    # Slow maps get small batches, so that all lanes have work.
    batch = 10_000 if how == "touch" else 200
    member = Member(
        Pipeline(topic, group=f"bench-{uuid4().hex}")
        .map(_MAPS[how])
        .reduce(Batch(batch, seconds=0.1))
        .reduce(Each(count)),
        PipelineSettings(
            kafka=KafkaSettings(bootstrap_servers=bootstrap),
            pipeline=EngineSettings(
                map_threads=int(threads), batch_records=batch, waiting_records=2 * batch
            ),
        ),
        clock=SystemClock(),
        metrics=Metrics(CollectorRegistry()),
    )
    member.loop.begin()
    while seen < wanted:
        member.loop.step()
        if first == 0 and seen > 0:
            first, began, cpu_began = seen, time.perf_counter(), time.process_time()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    member.loop.close()
    member.processor.close()
    print(json.dumps({"records": seen - first, "seconds": seconds, "cpu_s": cpu_s, "bytes": size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
