"""The places of consumer groups: what they have committed, and moving them elsewhere.

A group without a running member has its subscription in these places too: it is subscribed to the
topics in which it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, cast

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec

from kstream_agg.core.errors import ContractError
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.failures import mapped, no_such_topic
from kstream_agg.kafka.group_offsets import group_offsets
from kstream_agg.kafka.starts import UNSUBSCRIBED, patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from confluent_kafka.admin import AdminClient

    from kstream_agg.kafka.starts import Start

__all__ = ["GroupPlaces", "PartitionLag", "Place", "answer_for"]

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

_TIMEOUT_S: Final = 10.0
_LATEST: Final[OffsetSpec] = cast(OffsetSpec, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # theirs
_EARLIEST: Final[OffsetSpec] = cast(OffsetSpec, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # theirs
Place = tuple[str, int]
"""Topic and number of a partition."""


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group is in a partition.

    Attributes:
        topic: The topic.
        partition: The partition.
        committed: The next offset it will read; None when it has committed none.
        end: The offset that the next record gets.
    """

    topic: str
    partition: int
    committed: int | None
    end: int

    @property
    def lag(self) -> int | None:
        """Offsets between the two; compaction and transactions' marks leave some without record."""
        return None if self.committed is None else max(0, self.end - self.committed)


class GroupPlaces:
    """The part of `ConsumerGroups` that knows where groups stand.

    Args:
        admin: The client to ask with.
    """

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    def committed(self, name: str) -> dict[Place, int]:
        """What a group has committed; empty when that is nothing.

        Kafka shows what a transaction has committed some milliseconds after the commit returns.

        Raises:
            UnavailableError: No broker answers.
        """
        with mapped(f"reading the offsets of group '{name}'"):
            found = patiently(lambda: group_offsets(self._admin, name, _TIMEOUT_S))
        return {
            (p.topic, p.partition): p.offset
            for p in found
            if p.offset >= 0 and p.metadata != UNSUBSCRIBED
        }

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """The ends of partitions: the offset behind the last committed record.

        Raises:
            UnavailableError: No broker answers.
        """
        return self._offsets(dict.fromkeys(places, _LATEST))

    def topics(self, name: str) -> list[str]:
        """The topics that a group is subscribed to: those in which it has committed.

        Raises:
            UnavailableError: No broker answers.
        """
        return sorted({topic for topic, _ in self.committed(name)})

    def subscribe(
        self, name: str, topics: Sequence[str], start: Start = "latest"
    ) -> list[PartitionLag]:
        """Note where a group begins in topics, so that it misses nothing until somebody reads.

        Where it has committed already, it stays.

        Args:
            name: The group; it must have no running member. A new one is made by this.
            topics: Existing topics.
            start: Where it begins: with what comes after this call (`latest`), `earliest`, at an
                offset, or at a time (aware).

        Returns:
            Where it stands in these topics.

        Raises:
            UnavailableError: No broker answers.
            ContractError: A topic does not exist, the group has members, or an offset does not
                exist.
        """
        places = self._places_of(topics)
        known = self.committed(name)
        fresh = [place for place in places if place not in known]
        begins = self._targets(fresh, start)
        self._move(name, begins)
        return self._lags({place: known.get(place, begins.get(place, 0)) for place in places})

    def unsubscribe(self, name: str, topics: Sequence[str]) -> None:
        """Take a group's places in topics from it: subscribed again, it begins anew.

        The places stay in Kafka with a mark that this package knows: other programs' clients of
        the group would go on there.

        Args:
            name: The group; it must have no running member.
            topics: Topics that it is subscribed to.

        Raises:
            UnavailableError: No broker answers.
            ContractError: It is not subscribed to a topic, or has members.
        """
        known = self.committed(name)
        subscribed = sorted({topic for topic, _ in known})
        for topic in topics:
            if topic not in subscribed:
                raise ContractError(
                    f"group '{name}' is not subscribed to '{topic}'",
                    remedy=f"subscribed to is {', '.join(subscribed) or 'nothing'}",
                )
        gone = {place: offset for place, offset in known.items() if place[0] in topics}
        self._move(name, gone, UNSUBSCRIBED)

    def reset(self, name: str, topic: str, start: Start) -> list[PartitionLag]:
        """Have a group go on elsewhere in a topic.

        Args:
            name: The group; it must have no running member. A new one is made by this.
            topic: An existing topic.
            start: `earliest`, `latest`, an offset, or a time (aware).

        Returns:
            Where it stands now.

        Raises:
            UnavailableError: No broker answers.
            ContractError: The topic does not exist, the group has members, or an offset does not
                exist.
        """
        targets = self._targets(self._places_of([topic]), start)
        self._move(name, targets)
        return self._lags(targets)

    def _offsets(self, specs: Mapping[Place, OffsetSpec]) -> dict[Place, int]:
        if not specs:
            return {}

        def ask() -> dict[Place, int]:
            futures = self._admin.list_offsets(
                {TopicPartition(*place): spec for place, spec in specs.items()},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=_TIMEOUT_S,
            )
            return {
                (part.topic, part.partition): int(future.result().offset)
                for part, future in futures.items()
            }

        with mapped("reading the ends of partitions"):
            return patiently(ask)

    def _targets(self, places: list[Place], start: Start) -> dict[Place, int]:
        first = self._offsets(dict.fromkeys(places, _EARLIEST))
        last = self.ends(places)
        if start == "earliest":
            return first
        if start == "latest":
            return last
        if isinstance(start, datetime):
            at_ms = round(start.timestamp() * 1000)
            found = self._offsets(dict.fromkeys(places, OffsetSpec.for_timestamp(at_ms)))
            return {p: offset if offset >= 0 else last[p] for p, offset in found.items()}
        for place in places:
            if not first[place] <= start <= last[place]:
                raise ContractError(
                    f"partition {place[1]} of topic '{place[0]}' has no offset {start}",
                    remedy=f"it has offsets {first[place]} to {last[place]}",
                )
        return dict.fromkeys(places, start)

    def _places_of(self, topics: Sequence[str]) -> list[Place]:
        with mapped("reading the topics"):
            known = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        for topic in topics:
            if topic not in known:
                raise no_such_topic(topic, known)
        return [(topic, number) for topic in topics for number in sorted(known[topic].partitions)]

    def _move(self, name: str, places: Mapping[Place, int], mark: str = "") -> None:
        if not places:
            return
        parts = [
            TopicPartition(topic, number, offset, metadata=mark)
            for (topic, number), offset in places.items()
        ]
        with mapped(f"moving group '{name}'"):
            try:
                moved = answer_for(
                    name,
                    self._admin.alter_consumer_group_offsets,
                    [ConsumerGroupTopicPartitions(name, parts)],
                    request_timeout=_TIMEOUT_S,
                )
                _refuse_errors(moved.topic_partitions)
            except KafkaException as error:
                if error.args[0].code() in _HAS_MEMBERS:
                    raise ContractError(
                        f"group '{name}' has running members",
                        remedy=f"end them first; who they are: kstream-agg groups describe {name}",
                    ) from error
                raise

    def _lags(self, committed: Mapping[Place, int]) -> list[PartitionLag]:
        ends = self.ends(committed)
        return [PartitionLag(*place, offset, ends[place]) for place, offset in committed.items()]

    acommitted = awaitable(committed)
    atopics = awaitable(topics)
    asubscribe = awaitable(subscribe)
    aunsubscribe = awaitable(unsubscribe)
    areset = awaitable(reset)


def answer_for(
    name: str,
    request: Callable[P, Mapping[str, Future[ResultT]]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> ResultT:
    """What a request of the admin client says of one group, once its coordinator is there."""

    def ask() -> ResultT:
        return request(*args, **kwargs)[name].result()

    return patiently(ask)


_HAS_MEMBERS: Final = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP, KafkaError.GROUP_SUBSCRIBED_TO_TOPIC}
)


def _refuse_errors(partitions: Iterable[TopicPartition]) -> None:
    """The answer as a whole says nothing of a partition that was refused."""
    for part in partitions:
        if part.error is not None:
            raise KafkaException(part.error)
