"""One poll's messages, sorted by partition without a Python step for each."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from confluent_kafka import Message

from kstream_agg.core.logs import get_logger
from kstream_agg.kafka.reader import is_end_of_partition, read_failure
from kstream_agg.pipeline.processor import Partition

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["split_poll"]

_log = get_logger(__name__)


def split_poll(
    polled: Sequence[Message],
) -> tuple[dict[Partition, list[Message]], dict[Partition, int]]:
    """Sort one poll's messages.

    Args:
        polled: What `consume` has returned.

    Returns:
        Each partition's records in offset order, and the ends that were reached: partition to
        end offset.

    Raises:
        KStreamError: The consumer reports an error that it cannot get over by itself.
    """
    ends: dict[Partition, int] = {}
    if any(map(Message.error, polled)):
        records = [message for message in polled if message.error() is None]
        for message in polled:
            _note_event(message, ends)
    else:
        records = list(polled)
    batches: dict[Partition, list[Message]] = {}
    for number, by_number in groupby(records, key=Message.partition):
        for topic, group in groupby(by_number, key=Message.topic):
            partition = Partition(topic or "", number if number is not None else -1)
            batches.setdefault(partition, []).extend(group)
    return batches, ends


def _note_event(message: Message, ends: dict[Partition, int]) -> None:
    error = message.error()
    if error is None:
        return
    if is_end_of_partition(error):
        partition = Partition(message.topic() or "", message.partition() or 0)
        ends[partition] = message.offset() or 0
        return
    failure = read_failure(error)
    if failure is not None:
        raise failure
    _log.warning("consumer event", reason=error.str())
