"""Reads a topic whose records may be anything, and prints them in batches.

    python examples/batch_and_print.py TOPIC

What cannot be parsed is told on standard error; Ctrl-C finishes the open batch and commits.
"""

import sys

from confluent_kafka import Message

from kstream_agg.pipeline import Batch, Each, PassThrough, Pipeline, WriteTo, run_pipeline


def parse(message: Message) -> str:
    """The record's text, behind its place; an empty record is a failure."""
    value = message.value()
    if not value:
        raise ValueError("the record is empty")
    return f"{message.partition()}/{message.offset()} {value!r}"


def print_batch(lines: list[str]) -> None:
    """Stands for the writer of a database."""
    print(f"--- {len(lines)} records", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    run_pipeline(
        Pipeline(sys.argv[1], group="batch-and-print")
        .map(parse)
        .reduce(Batch(128, seconds=4))
        .reduce(PassThrough("Hello"))
        .reduce(Each(print_batch))
        .reduce(PassThrough("World"))
        .on_error(WriteTo(sys.stderr))
    )
