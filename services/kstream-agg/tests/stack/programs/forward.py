"""A pipeline for tests: numbers from one topic to another; what is no number is counted.

`python forward.py SOURCE OUT GROUP`
"""

import sys

from confluent_kafka import Message

from kstream_agg.pipeline import Batch, Pipeline, Record, StopAfter, run_pipeline


def number(message: Message) -> int:
    """The record's number."""
    return int(message.value() or b"")


if __name__ == "__main__":
    source, out, group = sys.argv[1:]
    run_pipeline(
        Pipeline(source, group=group)
        .map(number)
        .reduce(Batch(10, seconds=0.1))
        .produce(lambda batch: [Record(out, str(item).encode()) for item in batch])
        .on_error(StopAfter(count=0))
    )
