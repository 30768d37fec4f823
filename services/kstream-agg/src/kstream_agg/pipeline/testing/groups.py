"""Consumer groups of the in-memory broker: members, who owns what, committed offsets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.pipeline.processor import CommitPoint, Partition

__all__ = ["Group", "Member"]


@dataclass(eq=False, slots=True)
class Member:
    """A consumer in a group.

    Args:
        topics: What it subscribes to.
        owned: Partitions it has been told of.
        wanted: Those it should have.
        is_known: Whether the group counts it in; False once it has left or was expelled.
    """

    topics: frozenset[str]
    owned: set[Partition] = field(default_factory=set)
    wanted: set[Partition] = field(default_factory=set)
    is_known: bool = True


class Group:
    """A group's members and offsets.

    Partitions are spread evenly and stay where they are as far as that allows; one that moves is
    given to its new owner when the old one has given it up (cooperative rebalancing, KIP-429).
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.offsets: dict[Partition, CommitPoint] = {}

    def join(self, member: Member, partitions: Iterable[Partition]) -> None:
        """Count a member in and spread the partitions anew."""
        self.members.append(member)
        self.spread(partitions)

    def leave(self, member: Member, partitions: Iterable[Partition]) -> None:
        """Count a member out; what it owned is free at once."""
        member.is_known = False
        if member in self.members:
            self.members.remove(member)
            self.spread(partitions)

    def spread(self, partitions: Iterable[Partition]) -> None:
        """Decide who should have what."""
        wanted: dict[int, set[Partition]] = {id(member): set() for member in self.members}
        free = []
        topics = {topic for member in self.members for topic in member.topics}
        every = sorted(partition for partition in partitions if partition.topic in topics)
        for partition in every:
            readers = [m for m in self.members if partition.topic in m.topics]
            most = -(-len(every) // len(readers))
            holder = next((m for m in readers if partition in m.wanted), None)
            if holder is not None and len(wanted[id(holder)]) < most:
                wanted[id(holder)].add(partition)
            else:
                free.append((partition, readers))
        for partition, readers in free:
            fewest = min(readers, key=lambda member: len(wanted[id(member)]))
            wanted[id(fewest)].add(partition)
        for member in self.members:
            member.wanted = wanted[id(member)]

    def due_for(self, member: Member) -> tuple[list[Partition], list[Partition]]:
        """What a member must give up, and what it can take now."""
        taken = {partition for other in self.members for partition in other.owned}
        return sorted(member.owned - member.wanted), sorted(member.wanted - taken)
