"""A pipeline over a topic: map, batch, and a step that counts.

`python pipeline_consume.py BOOTSTRAP TOPIC TOTAL MAP THREADS` prints seconds and CPU-seconds from
behind the first batch to the last record. MAP is `touch` (the value's size), `json` (Python that
keeps the interpreter's lock) or `zlib` (C that lets it go).
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
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import KafkaSettings
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


_MAPS = {"touch": touch, "json": parse_json, "zlib": deflate}


def main(bootstrap: str, topic: str, total: str, how: str, threads: str) -> None:
    """Read the topic to its end."""
    wanted, seen, size = int(total), 0, 0
    first, began, cpu_began = 0, 0.0, 0.0

    def count(batch: list[int]) -> None:
        nonlocal seen, size
        seen += len(batch)
        size += sum(batch)

    member = Member(
        Pipeline(topic, group=f"bench-{uuid4().hex}")
        .map(_MAPS[how])
        .reduce(Batch(10_000, seconds=0.1))
        .reduce(Each(count)),
        PipelineSettings(
            kafka=KafkaSettings(bootstrap_servers=bootstrap),
            pipeline=EngineSettings(map_threads=int(threads)),
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
