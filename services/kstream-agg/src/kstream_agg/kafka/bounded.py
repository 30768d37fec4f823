"""Reading what stands in a topic's partitions now, in batches of messages, without a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from kstream_agg.core.errors import UnavailableError
from kstream_agg.kafka.failures import kafka_failure
from kstream_agg.kafka.reader import is_end_of_partition, make_consumer, read_failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from confluent_kafka import Message

    from kstream_agg.core.settings import KafkaSettings

__all__ = ["BoundedReader", "Extent"]

_BATCH: Final = 10_000
_POLL_S: Final = 0.1
_SILENCE_S: Final = 30.0  # a broker that gives nothing for so long is gone
_TIMEOUT_S: Final = 15.0


class Extent(NamedTuple):
    """A partition's committed records: offsets from `begin` up to, not including, `end`."""

    begin: int
    end: int


class BoundedReader:
    """Reads committed records only; a context manager.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
    """

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        self._admin = AdminClient(
            settings.client_config() | {"client.id": client_id, "log_level": 0}
        )
        # Never joined and never committed to: partitions are assigned by hand.
        self._consumer = make_consumer(settings, f"{client_id}-bounded", client_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def extents(self, topic: str) -> dict[int, Extent]:
        """What each partition of an existing topic holds now.

        Raises:
            UnavailableError: No broker answers.
        """
        try:
            numbers = self._admin.list_topics(topic, _TIMEOUT_S).topics[topic].partitions
            places = [TopicPartition(topic, number) for number in numbers]
            # The ends first: what retention deletes between the calls only shortens the extent.
            ends = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # theirs
            begins = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # theirs
        except KafkaException as error:
            raise kafka_failure(error, f"reading topic '{topic}'") from error
        return {
            number: Extent(min(begin, end), end)
            for number, begin, end in zip(numbers, begins, ends, strict=True)
        }

    def _offsets(self, places: list[TopicPartition], spec: OffsetSpec) -> list[int]:
        futures = self._admin.list_offsets(
            dict.fromkeys(places, spec),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_TIMEOUT_S,
        )
        return [int(futures[place].result().offset) for place in places]

    def read(
        self, topic: str, extents: Mapping[int, Extent]
    ) -> Iterator[tuple[int, list[Message]]]:
        """Partitions and batches of their records; those of one partition in offset order.

        All are read at once: a partition that is assigned later waits for a fetch that is under
        way, which costs about a second each.

        Raises:
            UnavailableError: The broker stops giving records before the ends are reached.
        """
        left = {number: extent for number, extent in extents.items() if extent.begin < extent.end}
        if not left:
            return
        self._consumer.assign(
            [TopicPartition(topic, number, extent.begin) for number, extent in left.items()]
        )
        silent_polls = 0
        try:
            while left:
                messages = self._consumer.consume(_BATCH, _POLL_S)
                silent_polls = 0 if messages else silent_polls + 1
                if silent_polls * _POLL_S >= _SILENCE_S:
                    raise UnavailableError(
                        f"Kafka gave no record of '{topic}' for {_SILENCE_S:.0f} s"
                    )
                yield from _within(messages, left).items()
        except KafkaException as error:
            raise kafka_failure(error, f"reading topic '{topic}'") from error
        finally:
            self._consumer.unassign()


def _within(messages: list[Message], left: dict[int, Extent]) -> dict[int, list[Message]]:
    """The records within the extents, by partition; what is read to its end is taken off `left`."""
    found: dict[int, list[Message]] = {}
    for message in messages:
        number, offset = int(message.partition() or 0), int(message.offset() or 0)
        extent = left.get(number)
        is_record = _is_record(message)
        if extent is None:
            continue
        if is_record and offset < extent.end:
            found.setdefault(number, []).append(message)
        # Ends of transactions take offsets too: the last record can stand before the extent's
        # end, and the end of the partition is then what says that it is reached.
        if offset + is_record >= extent.end:
            del left[number]
    return found


def _is_record(message: Message) -> bool:
    """Whether it is one, and not the news that the partition's end is reached."""
    error = message.error()
    if error is None:
        return True
    if not is_end_of_partition(error) and (failure := read_failure(error)) is not None:
        raise failure
    return False
