"""Consumer groups: which there are, who is in them, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from kstream_agg.core.errors import ContractError
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.failures import mapped
from kstream_agg.kafka.group_places import GroupPlaces, PartitionLag, Place, answer_for

__all__ = ["ConsumerGroups", "GroupDescription", "GroupMember", "PartitionLag"]

_TIMEOUT_S: Final = 10.0


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


class ConsumerGroups(GroupPlaces):
    """The consumer groups of a cluster; made by `KafkaCluster.groups`.

    Args:
        admin: The client to ask with.
    """

    def names(self) -> dict[str, str]:
        """All groups and their state.

        Raises:
            UnavailableError: No broker answers.
        """
        with mapped("listing the groups"):
            found = self._admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result()
            for error in found.errors:  # by a broker that did not answer: its groups are missing
                raise KafkaException(error)
        return {group.group_id: _state(group.state) for group in found.valid}

    def describe(self, name: str) -> GroupDescription:
        """A group with its members.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such group.
        """
        with mapped(f"describing group '{name}'"):
            try:
                found = answer_for(
                    name, self._admin.describe_consumer_groups, [name], request_timeout=_TIMEOUT_S
                )
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

    def delete(self, name: str) -> None:
        """Forget a group and all it has committed.

        Raises:
            UnavailableError: No broker answers.
            ContractError: There is no such group, or it has members.
        """
        with mapped(f"deleting group '{name}'"):
            try:
                answer_for(
                    name, self._admin.delete_consumer_groups, [name], request_timeout=_TIMEOUT_S
                )
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    raise _no_such_group(name) from error
                raise

    anames = awaitable(names)
    adescribe = awaitable(describe)
    alag = awaitable(lag)
    adelete = awaitable(delete)


def _no_such_group(name: str) -> ContractError:
    return ContractError(f"there is no group '{name}'", remedy="list them: kstream-agg groups")


def _state(state: object) -> str:
    return str(getattr(state, "name", state)).lower().replace("_", " ")
