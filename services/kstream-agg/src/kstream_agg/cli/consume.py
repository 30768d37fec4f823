"""`kstream-agg consume`: a topic's records as JSON lines."""

from __future__ import annotations

import base64
import contextlib
import difflib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from kstream_agg.cli.mending import json_value
from kstream_agg.cli.tools import open_cluster, open_tools
from kstream_agg.core.errors import ContractError, InvalidRecordError
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.verify.reading import Record, Span, TopicReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

__all__ = ["consume", "json_line"]

_POLL_S: Final = 0.3


@click.command()
@click.argument("topic")
@click.option(
    "--from", "start", type=click.Choice(["beginning", "end"]), default="end", show_default=True,
    help="Where to begin: with the oldest record, or with the next one.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="End after this many records.")
def consume(topic: str, start: str, count: int | None) -> None:
    """Print TOPIC's records as JSON lines, decoded by the schemas of the registry.

    Times are milliseconds since the epoch, as in the records. "@" holds where the record stands:
    topic, partition, offset, key and headers. A value that is no Avro record is printed as
    base64 under "@value" with the reason under "@error". Runs until --count or Ctrl-C; from the
    beginning, ends at the topic's end of now where --count is given and not reached.
    """
    settings, _ = open_tools("consume")
    known = open_cluster(settings, "consume").topics()
    if topic not in known:
        near = difflib.get_close_matches(topic, known, n=3, cutoff=0.5) or sorted(known)[:5]
        raise ContractError(
            f"there is no topic '{topic}'",
            remedy="did you mean " + ", ".join(near) + "?" if near else "there are no topics yet",
        )
    # In the background of a script it would be ignored, and nothing else ends this command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            SchemaRegistry(settings.registry) as registry,
            TopicReader(settings.kafka) as reader,
            # Closed before the reader is: left open, it would read on when it is collected.
            contextlib.closing(_follow(reader, topic, begin=start == "beginning")) as records,
        ):
            _print(records, RecordDecoder(registry.schema_by_id), count)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: let nothing be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(records: Iterable[Record], decoder: RecordDecoder, count: int | None) -> None:
    for number, record in enumerate(records, start=1):
        sys.stdout.write(json_line(record, decoder) + "\n")
        sys.stdout.flush()
        if number == count:
            return


def _follow(reader: TopicReader, topic: str, *, begin: bool) -> Generator[Record]:
    """Records as they come, for ever."""
    first = reader.spans([topic])
    at = {part: span.begin if begin else span.end for part, span in first.items()}
    while True:
        now = reader.spans([topic])
        spans = {part: Span(at.get(part, span.begin), span.end) for part, span in now.items()}
        yield from reader.read(spans)
        at = {part: span.end for part, span in spans.items()}
        time.sleep(_POLL_S)


def json_line(record: Record, decoder: RecordDecoder) -> str:
    """One record as a line of JSON.

    Args:
        record: The record.
        decoder: Decodes its value.
    """
    line: dict[str, Any] = {
        "@": {
            "topic": record.part.topic,
            "partition": record.part.partition,
            "offset": record.offset,
            "key": None if record.key is None else record.key.decode("utf-8", "replace"),
            "headers": {
                name: None if value is None else value.decode("utf-8", "replace")
                for name, value in record.headers
            },
        }
    }
    if record.value is None:
        line["@value"] = None
    else:
        try:
            line |= decoder.decode(record.value)
        except InvalidRecordError as error:
            line["@value"] = base64.b64encode(record.value).decode()
            line["@error"] = str(error)
    return json.dumps(line, default=json_value, ensure_ascii=False)
