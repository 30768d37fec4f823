"""What a reader reads: topics or partitions, and the place where each begins or goes on."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from kstream_agg.kafka.failures import mapped, no_such_topic
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.kafka.starts import UNSUBSCRIBED, Start, starting_offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kstream_agg.core.settings import KafkaSettings

__all__ = ["Assigned", "Rebalance"]

_TIMEOUT_S: Final = 10.0
_PATIENCE_S: Final = 10.0


class Rebalance(NamedTuple):
    """Partitions that come or go.

    `lost` ones have another owner already: nothing can be committed for them any more.
    """

    kind: Literal["assigned", "revoked", "lost"]
    partitions: tuple[TopicPartition, ...]


class Assigned:
    """The part of `Reader` that knows what is read and where it stands.

    Args:
        settings: How to reach the brokers.
        client_id: Named in the brokers' logs and metrics.
        group: The consumer group; None for a reader on its own.
        start: Where to begin in a partition without a committed offset.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        client_id: str,
        *,
        group: str | None = None,
        start: Start = "latest",
    ) -> None:
        properties = {"log_level": 0} | settings.properties
        self.group = group
        self.start: Start = start
        strategy = str(properties.get("partition.assignment.strategy", "cooperative-sticky"))
        self._is_eager = "cooperative" not in strategy
        self._consumer: Consumer = make_consumer(
            settings.model_copy(update={"properties": properties}),
            group or f"{client_id}-alone",
            client_id,
        )
        self._lock = threading.RLock()
        self._pending: Iterator[Message] = iter(())
        self._begins: dict[tuple[str, int], TopicPartition] = {}
        # Partitions of a group that begin there, and of which nothing was handed out yet.
        self._begun: dict[tuple[str, int], int] = {}
        self._before: Callable[[Rebalance], object] | None = None
        self._after: Callable[[Rebalance], object] | None = None

    def subscribe(self, topics: Sequence[str]) -> None:
        """Read these topics from now on, and no others.

        In a group, partitions without a committed offset begin at `start` as it is now: with
        `latest` nothing that comes after this call is missed, however long joining takes.

        Raises:
            UnavailableError: No broker answers.
            ContractError: A topic does not exist.
        """
        with self._lock, mapped("subscribing"):
            partitions = self._partitions_of(topics)
            if self.group is None:
                self._assign_alone(partitions)
            elif not topics:
                self._consumer.unsubscribe()
            else:
                self._note_begins(partitions)
                self._consumer.subscribe(
                    list(topics),
                    on_assign=self._on_assign,
                    on_revoke=self._on_revoke,
                    on_lost=self._on_lost,
                )

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """Read these partitions from `start` on, and no others, in no group.

        Raises:
            UnavailableError: No broker answers.
            ContractError: A partition does not have the offset that `start` names.
        """
        with self._lock, mapped("assigning partitions"):
            self._pending = iter(())
            self._consumer.assign(starting_offsets(self._consumer, partitions, self.start))

    def unsubscribe(self) -> None:
        """Read nothing any more; a member leaves its group."""
        self.subscribe(())

    def on_rebalance(
        self,
        before: Callable[[Rebalance], object] | None = None,
        after: Callable[[Rebalance], object] | None = None,
    ) -> None:
        """Be told of partitions that come or go; called by whatever call is reading.

        Args:
            before: Before it happens: what is revoked can still be committed.
            after: When it has happened.
        """
        self._before, self._after = before, after

    @property
    def assignment(self) -> list[TopicPartition]:
        """The partitions it reads now."""
        with self._lock:
            return list(self._consumer.assignment())

    def positions(self) -> list[TopicPartition]:
        """The next offset of each partition, where one is known.

        It is not before something was handed out or sought, but for a new member's beginnings.
        """
        with self._lock, mapped("asking for positions"):
            rest = self._rest()
            waiting: dict[tuple[str, int], int] = {}
            for message in rest:
                key = (message.topic() or "", message.partition() or 0)
                waiting.setdefault(key, message.offset() or 0)
            found = []
            for part in self._consumer.position(self._consumer.assignment()):
                key = (part.topic, part.partition)
                known = part.offset if part.offset >= 0 else self._begun.get(key, -1)
                offset = waiting.get(key, known)
                if offset >= 0:
                    found.append(TopicPartition(*key, offset))
            return found

    def _seek(self, target: TopicPartition) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._consumer.seek(target)
            except KafkaException as error:
                # A partition that was just assigned is not fetched yet, and cannot be moved.
                not_yet = error.args[0].code() == KafkaError._STATE  # noqa: SLF001 - its public name
                if not not_yet or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def _rest(self) -> list[Message]:
        """What was fetched and not handed out; stays so."""
        rest = list(self._pending)
        self._pending = iter(rest)
        return rest

    def _forget(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Drop what was fetched of these; where to fetch it from again."""
        gone = {(part.topic, part.partition) for part in partitions}
        first: dict[tuple[str, int], int] = {}
        kept = []
        for message in self._rest():
            key = (message.topic() or "", message.partition() or 0)
            if key in gone:
                first.setdefault(key, message.offset() or 0)
            else:
                kept.append(message)
        self._pending = iter(kept)
        return [TopicPartition(topic, part, offset) for (topic, part), offset in first.items()]

    def _partitions_of(self, topics: Sequence[str]) -> list[TopicPartition]:
        if not topics:
            return []
        known = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
        for topic in topics:
            if topic not in known:
                raise no_such_topic(topic, known)
        return [TopicPartition(t, number) for t in topics for number in sorted(known[t].partitions)]

    def _assign_alone(self, partitions: list[TopicPartition]) -> None:
        kept = {(p.topic, p.partition): p for p in self.positions()}
        self._pending = iter(())
        fresh = [p for p in partitions if (p.topic, p.partition) not in kept]
        begins = {
            (p.topic, p.partition): p for p in starting_offsets(self._consumer, fresh, self.start)
        } | kept
        self._consumer.assign([begins[p.topic, p.partition] for p in partitions])

    def _note_begins(self, partitions: list[TopicPartition]) -> None:
        fresh = [p for p in partitions if (p.topic, p.partition) not in self._begins]
        for part in starting_offsets(self._consumer, fresh, self.start):
            self._begins[part.topic, part.partition] = part

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        change = Rebalance("assigned", tuple(partitions))
        self._tell(self._before, change)
        placed = []
        for part in consumer.committed(partitions, timeout=_TIMEOUT_S) if partitions else []:
            begin = self._begins.get((part.topic, part.partition))
            is_new = part.offset < 0 or part.metadata == UNSUBSCRIBED
            if is_new and begin is not None:
                placed.append(begin)
                self._begun[part.topic, part.partition] = begin.offset
            else:  # committed, or a partition that came later: from its first record
                placed.append(part)
        if self._is_eager:
            consumer.assign(placed)
        else:
            consumer.incremental_assign(placed)
        self._tell(self._after, change)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_up(consumer, Rebalance("revoked", tuple(partitions)))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_up(consumer, Rebalance("lost", tuple(partitions)))

    def _give_up(self, consumer: Consumer, change: Rebalance) -> None:
        self._tell(self._before, change)
        self._forget(change.partitions)
        for part in change.partitions:
            self._begun.pop((part.topic, part.partition), None)
        if self._is_eager:
            consumer.unassign()
        else:
            consumer.incremental_unassign(list(change.partitions))
        self._tell(self._after, change)

    @staticmethod
    def _tell(whom: Callable[[Rebalance], object] | None, change: Rebalance) -> None:
        if whom is not None:
            whom(change)
