"""Sending records again from the log, in the background and in small portions.

A batch waits here when Kafka has not taken all its records: they were written while it was away,
librdkafka gave up on them, or the process that wrote them is gone. Bit masks say which of a
batch's records are undelivered and which are on their way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.outcomes import is_final

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message

    from kstream_agg.proxy.outbox import Outbox
    from kstream_agg.proxy.store import LogStore
    from kstream_agg.proxy.tallies import Tallies

__all__ = ["Batch", "LogPorts", "LoggedRecord", "Resender", "decode_batch", "encode_batch"]

_log = get_logger(__name__)

# What may be in librdkafka's queue of records that are sent again.
_WINDOW_BYTES: Final = 4 << 20
_PAUSE_S: Final = 0.5


class LoggedRecord(msgspec.Struct, array_like=True):
    """A record as it stands in the log."""

    topic: str
    value: Any  # str, bytes or None: MessagePack tells them apart, msgspec takes no such union
    key: str | None
    partition: int
    timestamp: int
    headers: list[tuple[str, Any]] | None  # values: the same

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return len(self.value or "") + len(self.key or "") + 64


encode_batch: Final = msgspec.msgpack.Encoder().encode
decode_batch: Final = msgspec.msgpack.Decoder(list[LoggedRecord]).decode


class Batch:
    """Records written together.

    Args:
        number: Its id in the log.
        count: How many records.
        size: Its size in the log in bytes.
    """

    __slots__ = ("flying", "left", "number", "queued", "size")

    def __init__(self, number: int, count: int, size: int) -> None:
        self.number = number
        self.size = size
        self.left = (1 << count) - 1
        self.flying = 0
        self.queued = False


@dataclass(frozen=True, slots=True)
class LogPorts:
    """What the log works with.

    Args:
        store: Its files.
        outbox: Knows whether Kafka is away.
        tallies: Counts.
        report: Counts a delivery report in its topic's numbers.
        send: Hands a record to librdkafka with a callback; BufferError when its queue is full.
    """

    store: LogStore
    outbox: Outbox
    tallies: Tallies
    report: Callable[[KafkaError | None, Message], None]
    send: Callable[[LoggedRecord, Any], None]


@dataclass(slots=True)
class _Resent:
    """A record sent again; librdkafka calls it with the delivery report."""

    owner: Resender
    batch: Batch
    bit: int
    record: LoggedRecord

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self.owner.reported(self, error, message)


class Resender:
    """The batches that wait to be sent again.

    Args:
        ports: What the log works with.
        finished: Told of a batch whose records are all delivered.
        park: Told of a record that Kafka will never take.
    """

    def __init__(
        self,
        ports: LogPorts,
        finished: Callable[[Batch], None],
        park: Callable[[LoggedRecord, KafkaError], None],
    ) -> None:
        self._ports = ports
        self._finished = finished
        self._park = park
        self._backlog: deque[Batch] = deque()
        self._flying_bytes = 0
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """How many batches wait."""
        return len(self._backlog)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def enqueue(self, batch: Batch) -> None:
        """Send what is left of a batch, when its turn comes."""
        if not batch.queued:
            batch.queued = True
            self._backlog.append(batch)
            self._wake.set()

    def delivered(self, batch: Batch, bit: int) -> None:
        """Kafka has one of a batch's records."""
        batch.left &= ~bit
        if not batch.left:
            self._finished(batch)

    def failed(self, batch: Batch) -> None:
        """One of a batch's records did not get through: it is tried again a little later."""
        asyncio.get_running_loop().call_later(_PAUSE_S, self.enqueue, batch)

    def reported(self, sent: _Resent, error: KafkaError | None, message: Message) -> None:
        """The delivery report of a record sent again."""
        self._ports.report(error, message)
        self._flying_bytes -= sent.record.size
        sent.batch.flying &= ~sent.bit
        if error is None:
            self._ports.tallies.count("push_proxy_wal_resent_records")
            self.delivered(sent.batch, sent.bit)
        elif is_final(error):
            self._park(sent.record, error)
            self.delivered(sent.batch, sent.bit)
        else:
            self.failed(sent.batch)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._backlog and not self._ports.outbox.away:
                if self._flying_bytes >= _WINDOW_BYTES:
                    break  # a delivery report wakes us
                batch = self._backlog.popleft()
                batch.queued = False
                if not await self._send(batch):
                    await asyncio.sleep(_PAUSE_S)

    async def _send(self, batch: Batch) -> bool:
        """Send what a batch has left; False when librdkafka's queue is full."""
        if not batch.left:
            return True  # confirmed while it waited
        blob = await asyncio.to_thread(self._ports.store.read, batch.number)
        if blob is None:
            _log.error("a batch is missing in the log", batch=batch.number)
            return True
        for place, record in enumerate(decode_batch(blob)):
            bit = 1 << place
            if not batch.left & bit or batch.flying & bit:
                continue
            try:
                self._ports.send(record, _Resent(self, batch, bit, record))
            except BufferError:
                self.enqueue(batch)
                return False
            batch.flying |= bit
            self._flying_bytes += record.size
        return True
