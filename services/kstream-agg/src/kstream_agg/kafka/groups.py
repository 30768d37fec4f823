"""Consumer groups: who is in them, how far they are, and moving them elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, cast

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

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confluent_kafka.admin import AdminClient

    from kstream_agg.kafka.starts import Start

__all__ = ["ConsumerGroups", "GroupDescription", "GroupMember", "PartitionLag"]

_TIMEOUT_S: Final = 10.0
_LATEST: Final[OffsetSpec] = cast(OffsetSpec, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # theirs
_EARLIEST: Final[OffsetSpec] = cast(OffsetSpec, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # theirs
Place = tuple[str, int]
"""Topic and number of a partition."""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One member: a running reader.

    Attributes:
        member_id: Given by the group's coordinator.
        client_id: What the program calls itself.
        host: Where it runs, as the broker sees it.
        partitions: Topic and number of what it reads.
    """

    member_id: str
    client_id: str
    host: str
    partitions: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """A group with its members.

    Attributes:
        name: Its name.
        state: `stable`, `empty` (offsets and no member), `dead` (nothing of it is left), or on
            the way between them.
        assignor: How partitions are spread over the members.
        coordinator: The broker that manages it; None while none does.
        members: Its members.
    """

    name: str
    state: str
    assignor: str
    coordinator: int | None
    members: tuple[GroupMember, ...]


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


class ConsumerGroups:
    """The consumer groups of a cluster; made by `KafkaCluster.groups`.

    Args:
        admin: The client to ask with.
    """

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    def names(self) -> dict[str, str]:
        """All groups and their state.

        Raises:
            UnavailableError: No broker answers.
        """
        with mapped("listing the groups"):
            found = self._admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result()
        return {group.group_id: _state(group.state) for group in found.valid}

    def describe(self, name: str) -> GroupDescription:
        """A group with its members.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such group.
        """
        with mapped(f"describing group '{name}'"):
            try:
                futures = self._admin.describe_consumer_groups([name], request_timeout=_TIMEOUT_S)
                found = futures[name].result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    raise _no_such_group(name) from error
                raise
        state = _state(found.state)
        if state == "dead":
            raise _no_such_group(name)
        return GroupDescription(
            name,
            state,
            found.partition_assignor or "",
            found.coordinator.id if found.coordinator is not None else None,
            tuple(
                GroupMember(
                    member.member_id,
                    member.client_id,
                    member.host,
                    tuple(
                        sorted((p.topic, p.partition) for p in member.assignment.topic_partitions)
                    )
                    if member.assignment
                    else (),
                )
                for member in found.members
            ),
        )

    def committed(self, name: str) -> dict[Place, int]:
        """What a group has committed; empty when that is nothing.

        Raises:
            UnavailableError: No broker answers.
        """
        with mapped(f"reading the offsets of group '{name}'"):
            try:
                futures = self._admin.list_consumer_group_offsets(
                    [ConsumerGroupTopicPartitions(name)], request_timeout=_TIMEOUT_S
                )
                found = futures[name].result().topic_partitions
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return {}
                raise
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def lag(self, name: str) -> list[PartitionLag]:
        """How far a group is in each partition it has committed for or reads now.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such group.
        """
        description = self.describe(name)
        committed = self.committed(name)
        places = {place for member in description.members for place in member.partitions}
        ends = self.ends(sorted(places | committed.keys()))
        return [
            PartitionLag(topic, number, committed.get((topic, number)), end)
            for (topic, number), end in ends.items()
        ]

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """The ends of partitions: the offset behind the last committed record.

        Raises:
            UnavailableError: No broker answers.
        """
        return self._offsets(dict.fromkeys(places, _LATEST))

    def _offsets(self, specs: Mapping[Place, OffsetSpec]) -> dict[Place, int]:
        if not specs:
            return {}
        with mapped("reading the ends of partitions"):
            futures = self._admin.list_offsets(
                {TopicPartition(*place): spec for place, spec in specs.items()},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=_TIMEOUT_S,
            )
            return {
                (part.topic, part.partition): int(future.result().offset)
                for part, future in futures.items()
            }

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
        with mapped("reading the topics"):
            known = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        if topic not in known:
            raise no_such_topic(topic, known)
        places = [(topic, number) for number in sorted(known[topic].partitions)]
        targets = self._targets(places, start)
        parts = [TopicPartition(*place, offset) for place, offset in targets.items()]
        with mapped(f"moving group '{name}'"):
            try:
                futures = self._admin.alter_consumer_group_offsets(
                    [ConsumerGroupTopicPartitions(name, parts)], request_timeout=_TIMEOUT_S
                )
                _refuse_errors(futures[name].result().topic_partitions)
            except KafkaException as error:
                if error.args[0].code() in _HAS_MEMBERS:
                    raise ContractError(
                        f"group '{name}' has running members",
                        remedy=f"end them first; who they are: kstream-agg groups describe {name}",
                    ) from error
                raise
        ends = self.ends(places)
        return [PartitionLag(*place, offset, ends[place]) for place, offset in targets.items()]

    def delete(self, name: str) -> None:
        """Forget a group and all it has committed.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such group, or it has members.
        """
        with mapped(f"deleting group '{name}'"):
            try:
                self._admin.delete_consumer_groups([name], request_timeout=_TIMEOUT_S)[
                    name
                ].result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    raise _no_such_group(name) from error
                raise

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

    anames = awaitable(names)
    adescribe = awaitable(describe)
    acommitted = awaitable(committed)
    alag = awaitable(lag)
    areset = awaitable(reset)
    adelete = awaitable(delete)


_HAS_MEMBERS: Final = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP, KafkaError.GROUP_SUBSCRIBED_TO_TOPIC}
)


def _refuse_errors(partitions: Iterable[TopicPartition]) -> None:
    """The answer as a whole says nothing of a partition that was refused."""
    for part in partitions:
        if part.error is not None:
            raise KafkaException(part.error)


def _no_such_group(name: str) -> ContractError:
    return ContractError(f"there is no group '{name}'", remedy="list them: kstream-agg groups")


def _state(state: object) -> str:
    return str(getattr(state, "name", state)).lower().replace("_", " ")
