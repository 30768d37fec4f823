"""Sending dead letters back to their topics, each once; who sent what back is kept for good.

1. Take the transactional id over: what an earlier replay had begun is either committed as a whole
   or aborted, and one that still runs is fenced.
2. Read the audit topic to its committed end: what it names has been sent back.
3. In one transaction, write the records, learn where they stand, and write an audit record of each.
4. Commit. A replay that is killed before has sent nothing back; killed behind it, the next one
   finds the audit records.

A letter is known by its record: where it stood, and when. A record that was set aside twice, by a
reader that was killed before its commit or by two groups, is one and is sent back once. A letter
that does not say so much (Connect's, or one that never was a record) is known by its own place and
time. The time is there because a topic that is deleted and made anew begins with the same offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from kstream_agg.core.errors import ContractError
from kstream_agg.kafka.cluster import TopicConfiguration
from kstream_agg.kafka.dead_letters import REPLAYED_FROM, Place
from kstream_agg.kafka.placed_transactions import PlacedTransactionWriter
from kstream_agg.kafka.topic_reader import TopicReader

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from kstream_agg.core.clock import Clock
    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import KafkaSettings, TopicSettings
    from kstream_agg.kafka.dead_letters import DeadLetter

__all__ = [
    "AUDIT_TOPIC",
    "Audit",
    "Identity",
    "Replay",
    "Replayer",
    "audit_topic",
    "identity_of",
    "known_replays",
]

AUDIT_TOPIC: Final = "dlq-replays"
_TRANSACTIONAL_ID: Final = "dlq-replay"
# A transaction is also what a killed replay does again: small enough for both.
_CHUNK: Final = 500

Identity = tuple[Place, int]
"""A record's place and timestamp, or its letter's."""


class Stand(msgspec.Struct, frozen=True):
    """A record's place in an audit record."""

    topic: str
    partition: int
    offset: int
    timestamp: int = -1


class Audit(msgspec.Struct, frozen=True):
    """An audit record, JSON in the topic `dlq-replays`.

    Attributes:
        letter: Where the dead letter stands.
        origin: Where its record stood before; None when it never was one.
        to: Where it stands now.
        at_ms: When it was sent back.
        by: Who did.
        is_mended: Its value was replaced.
    """

    letter: Stand
    origin: Stand | None
    to: Stand
    at_ms: int
    by: str
    is_mended: bool = False

    @property
    def identity(self) -> Identity:
        """Which letter it speaks of, as `identity_of`."""
        known = self.letter
        if self.origin is not None and self.origin.timestamp >= 0:
            known = self.origin
        return Place(known.topic, known.partition, known.offset), known.timestamp


@dataclass(frozen=True, slots=True)
class Replay:
    """One letter to send back.

    Attributes:
        letter: The letter.
        topic: Where to.
        partition: -1 leaves it to the key.
        value: What to send: the letter's own value, or a mended one.
    """

    letter: DeadLetter
    topic: str
    partition: int
    value: bytes | None

    @property
    def identity(self) -> Identity:
        """Which letter it is."""
        return identity_of(self.letter)


def identity_of(letter: DeadLetter) -> Identity:
    """By what a letter is known; see the module."""
    origin = letter.origin
    if origin is not None and origin.timestamp >= 0:
        return Place(origin.topic, origin.partition, origin.offset), origin.timestamp
    return letter.place, letter.timestamp


def audit_topic(settings: TopicSettings) -> TopicConfiguration:
    """The audit topic as it should be created: nothing is ever deleted from it."""
    config = {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "-1",
        "retention.bytes": "-1",
    }
    return TopicConfiguration(
        AUDIT_TOPIC, 1, settings.replication_factor, config, keep_existing=True
    )


def known_replays(reader: TopicReader) -> dict[Identity, list[Audit]]:
    """What has been sent back so far, the oldest first; empty without an audit topic.

    Raises:
        ContractError: Something else stands in the audit topic.
    """
    found: dict[Identity, list[Audit]] = {}
    for record in reader.read(reader.spans([AUDIT_TOPIC])):
        try:
            audit = msgspec.json.decode(record.value or b"", type=Audit)
        except msgspec.DecodeError as error:
            raise ContractError(
                f"{AUDIT_TOPIC}/0/{record.offset} is no audit record: {error}",
                remedy="what was sent back cannot be told: nothing is, until it can",
            ) from error
        found.setdefault(audit.identity, []).append(audit)
    return found


class Replayer:
    """Sends letters back.

    Args:
        settings: How to reach the brokers.
        metrics: Counts deliveries.
        clock: Dates the audit records.
        by: Who asks for it.
    """

    def __init__(self, settings: KafkaSettings, metrics: Metrics, clock: Clock, by: str) -> None:
        self._settings = settings
        self._clock = clock
        self._by = by
        self._writer = PlacedTransactionWriter(settings, metrics, "dlq-replay", _TRANSACTIONAL_ID)

    def send(
        self, replays: Sequence[Replay], stop: threading.Event, *, again: bool = False
    ) -> Iterator[tuple[Replay, Audit, bool]]:
        """Send back what has not been; see the module's docstring.

        Args:
            replays: What to send; of several letters of one record the first.
            stop: Ends it between two transactions, and every wait.
            again: Also what has been sent back before.

        Yields:
            Each letter with its audit record and whether it was sent now, once that is committed.

        Raises:
            DeliveryError: Kafka does not take a transaction: nothing of it is sent.
        """
        # 1.
        if not self._writer.start(stop):
            return
        # 2.
        with TopicReader(self._settings, "dlq-replay") as reader:
            known = known_replays(reader)
        chosen: dict[Identity, Replay] = {}
        for replay in replays:
            if replay.identity in known and not again:
                yield replay, known[replay.identity][-1], False
            else:
                chosen.setdefault(replay.identity, replay)
        due = list(chosen.values())
        for begin in range(0, len(due), _CHUNK):
            if stop.is_set():
                return
            for replay, audit in self._send(due[begin : begin + _CHUNK], stop):
                yield replay, audit, True

    def _send(self, replays: Sequence[Replay], stop: threading.Event) -> list[tuple[Replay, Audit]]:
        def keep_waiting() -> bool:
            return not stop.is_set()

        # 3.
        for replay in replays:
            letter = replay.letter
            back = (REPLAYED_FROM, str(letter.place).encode())
            self._writer.place(
                replay.topic,
                replay.value,
                key=letter.key,
                headers=[*letter.original_headers(), back],
                partition=replay.partition,
            )
        places = self._writer.places(keep_waiting)
        done = [(r, self._audit(r, place)) for r, place in zip(replays, places, strict=True)]
        for replay, audit in done:
            key = str(replay.letter.place).encode()
            self._writer.produce(AUDIT_TOPIC, msgspec.json.encode(audit), key=key)
        # 4.
        self._writer.commit(keep_waiting)
        return done

    def _audit(self, replay: Replay, to: Place) -> Audit:
        letter, origin = replay.letter, replay.letter.origin
        return Audit(
            letter=Stand(*letter.place, letter.timestamp),
            origin=None
            if origin is None
            else Stand(origin.topic, origin.partition, origin.offset, origin.timestamp),
            to=Stand(*to),
            at_ms=self._clock.now_ms(),
            by=self._by,
            is_mended=replay.value != letter.value,
        )
