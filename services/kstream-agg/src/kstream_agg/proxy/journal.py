"""The write-ahead log: what a client was told is accepted is in Kafka or on disk.

A record that does not wait goes to librdkafka and to the journal at once, and its client is
answered at whichever comes first:

1. Kafka confirms it: it never touches the disk. That is the common case.
2. It has been waiting for one to two sync intervals: it is written with all others of its age in
   one batch and one flush to disk (group commit).

While Kafka is away records go to the log alone, so that memory does not fill. A batch is removed
once Kafka has confirmed all its records; a record that librdkafka gave up on is read back and sent
again until Kafka takes it (`resending`). One that Kafka will never take (topic deleted, too large
for it) is set aside in the log and tried again at the next start.

Duplicates: a crash sends again the records of batches whose removal was not on disk yet, at most
those finished in the last `_DROP_AFTER_S` and those in flight; a record whose confirmation was
lost is sent again, as with any producer without idempotence. Records sent again come after later
ones.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.outcomes import Failure, failure_of, is_final
from kstream_agg.proxy.resending import Batch, LoggedRecord, Resender, encode_batch
from kstream_agg.proxy.store import LogWriteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message

    from kstream_agg.proxy.resending import LogPorts
    from kstream_agg.proxy.store import LogStore

__all__ = ["Entry", "Journal"]

_log = get_logger(__name__)

# How long a finished batch may wait for the next commit before it gets one of its own.
_DROP_AFTER_S: Final = 0.2
_WRITE_RETRY_S: Final = 0.5
_LOG_FULL: Final = Failure(503, "the log is full and Kafka is away: try again later", 5)


class Entry:
    """One accepted record on its way; librdkafka calls it with the delivery report."""

    __slots__ = ("_journal", "batch", "bit", "done", "error", "flying", "index", "record", "settle")

    def __init__(
        self,
        journal: Journal,
        record: LoggedRecord,
        index: int,
        settle: Callable[[int, Failure | None], None],
    ) -> None:
        self._journal = journal
        self.record: LoggedRecord | None = record
        self.index = index
        self.settle: Callable[[int, Failure | None], None] | None = settle
        self.batch: Batch | None = None
        self.bit = 0
        self.done = False
        self.flying = False
        self.error: Failure | None = None

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        """Take the delivery report."""
        self._journal.reported(self, error, message)

    def answer(self, failure: Failure | None) -> None:
        """Tell the waiting request, once."""
        settle, self.settle = self.settle, None
        if settle is not None:
            settle(self.index, failure)


class Journal:
    """One worker's write-ahead log; lives in its event loop, writes in a thread.

    Args:
        ports: What it works with.
        max_bytes: What this worker's log may hold.
        interval_s: The sync interval.
    """

    def __init__(self, ports: LogPorts, *, max_bytes: int, interval_s: float) -> None:
        self._ports = ports
        self._store = ports.store
        self._max_bytes = max_bytes
        self._interval_s = interval_s
        self._resender = Resender(ports, self._finished, self._park)
        self._young: list[Entry] = []
        self._old: list[Entry] = []
        self._drops: list[Batch] = []
        self._parks: list[tuple[int, bytes]] = []
        self._writing = False
        self._idle = False
        self._there_is_work = asyncio.Event()
        self._drop_due = 0.0
        self._retry_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self.broken: str | None = None
        """Why the log cannot be written; None while it can."""
        self.parked_count = 0
        """Records set aside because Kafka will never take them."""
        self.stored_bytes = 0
        """What the log holds."""
        self._next = 1
        for number, count, size in self._store.batches():
            self._next = max(self._next, number + 1)
            self.stored_bytes += size
            self._resender.enqueue(Batch(number, count, size))

    # --- for the handler -------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the log takes nothing more, for its size or because it cannot be written."""
        return self.stored_bytes >= self._max_bytes or self.broken is not None

    @property
    def backlog(self) -> int:
        """Batches that wait to be sent again."""
        return len(self._resender)

    def entry(
        self,
        record: LoggedRecord,
        index: int,
        settle: Callable[[int, Failure | None], None],
    ) -> Entry:
        """Take charge of a record; its request hears of it through `settle`, once."""
        entry = Entry(self, record, index, settle)
        self._young.append(entry)
        if self._idle:
            self._work()
        return entry

    def start(self) -> None:
        """Begin to write and to send again."""
        loop = asyncio.get_running_loop()
        self._retry_parked()
        self._tasks = [loop.create_task(self._write_loop()), loop.create_task(self._resender.run())]

    def wake(self) -> None:
        """Kafka is back: send what waits."""
        self._resender.wake()

    async def adopt(self, other: LogStore) -> int:
        """Take over the records of a log whose worker is gone.

        Returns:
            How many batches there were.
        """
        found = other.batches()
        for number, count, size in found:
            blob = await asyncio.to_thread(other.read, number)
            if blob is None:
                continue
            batch = Batch(self._take_number(), count, size)
            await asyncio.to_thread(self._store.commit, [(batch.number, blob)])
            await asyncio.to_thread(other.commit, (), [number])
            self.stored_bytes += size
            self._resender.enqueue(batch)
        return len(found)

    async def close(self) -> int:
        """Write what is left, and end.

        Returns:
            How many batches stay in the log, to be sent at the next start.
        """
        self._closing = True
        while self._writing:  # noqa: ASYNC110 - rare and short, not worth an event in the hot path
            await asyncio.sleep(0.005)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._write(self._old + self._young)
        left = len(self._store.batches())
        self._store.close()
        return left

    # --- delivery --------------------------------------------------------------------------

    def reported(self, entry: Entry, error: KafkaError | None, message: Message) -> None:
        """A record's first delivery report."""
        self._ports.report(error, message)
        entry.flying = False
        batch = entry.batch
        if batch is not None:
            batch.flying &= ~entry.bit
            if error is None:
                self._resender.delivered(batch, entry.bit)
            else:
                self._resender.failed(batch)
        elif error is None:
            entry.done = True
            entry.answer(None)
        else:
            entry.error = failure_of(error, message.topic() or "")
            if is_final(error) or self.is_full:
                entry.done = True
                entry.answer(entry.error)
            # else it is written with the next batch, and sent from there

    def _finished(self, batch: Batch) -> None:
        if not self._drops:
            self._drop_due = asyncio.get_running_loop().time() + _DROP_AFTER_S
        self._drops.append(batch)
        self._work()

    def _park(self, record: LoggedRecord, error: KafkaError) -> None:
        _log.error(
            "Kafka will never take an accepted record: it is set aside in the log",
            topic=record.topic,
            error=error.str(),
        )
        self.parked_count += 1
        self._parks.append((self._take_number(), encode_batch([record])))
        self._work()

    def _retry_parked(self) -> None:
        for number, blob in self._store.parked():
            batch = Batch(self._take_number(), 1, len(blob))
            self._store.commit([(batch.number, blob)])
            self._store.unpark([number])
            self.stored_bytes += batch.size
            self._resender.enqueue(batch)
            _log.warning("trying again a record that was set aside")

    # --- writing ---------------------------------------------------------------------------

    def _work(self) -> None:
        self._idle = False
        self._there_is_work.set()

    async def _write_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            if not (self._young or self._old or self._drops or self._parks):
                self._there_is_work.clear()
                self._idle = True
                await self._there_is_work.wait()
            await asyncio.sleep(self._interval_s)
            ripe, self._old, self._young = self._old, self._young, []
            if self._ports.outbox.away:  # nothing will confirm them soon
                ripe, self._old = ripe + self._old, []
            if ripe or ((self._drops or self._parks) and loop.time() >= self._drop_due):
                await self._write(ripe)

    async def _write(self, entries: list[Entry]) -> None:
        """Commit records and removals.

        1. Encode the records that are not delivered yet as one batch.
        2. Commit it and the removals, in a thread.
        3. What was confirmed meanwhile counts as delivered; the others' clients are answered.
        4. What is not on its way to Kafka is queued to be sent from the log.
        """
        loop = asyncio.get_running_loop()
        entries = [entry for entry in entries if not entry.done]
        if entries and self._must_not_write(loop.time()):
            self._refuse(entries)
            entries = []
        drops, self._drops = self._drops, []
        parks, self._parks = self._parks, []
        if not (entries or drops or parks):
            return
        self._writing = True
        try:
            # 1.
            batch, put = None, []
            if entries:
                blob = encode_batch([entry.record for entry in entries])
                batch = Batch(self._take_number(), len(entries), len(blob))
                put = [(batch.number, blob)]
            # 2.
            numbers = [drop.number for drop in drops]
            await loop.run_in_executor(None, self._store.commit, put, numbers, parks)
        except LogWriteError as error:
            self._could_not_write(error, loop.time())
            self._drops, self._parks = drops + self._drops, parks + self._parks
            self._drop_due = loop.time() + _WRITE_RETRY_S
            self._refuse(entries)
        else:
            self._wrote(batch, entries, drops)
        finally:
            self._writing = False

    def _wrote(self, batch: Batch | None, entries: list[Entry], drops: list[Batch]) -> None:
        if self.broken is not None:
            self.broken = None
            _log.info("the log can be written again")
        self.stored_bytes -= sum(drop.size for drop in drops)
        if batch is None:
            return
        self.stored_bytes += batch.size
        self._ports.tallies.count("push_proxy_wal_written_records", len(entries))
        # 3.
        for place, entry in enumerate(entries):
            entry.batch, entry.bit, entry.record = batch, 1 << place, None
            if entry.done:
                batch.left &= ~entry.bit
            elif entry.flying:
                batch.flying |= entry.bit
            entry.answer(None)
        # 4.
        if not batch.left:
            self._finished(batch)
        elif batch.left & ~batch.flying:
            self._resender.enqueue(batch)

    def _must_not_write(self, now: float) -> bool:
        if self.broken is not None:
            return now < self._retry_at
        return self.stored_bytes >= self._max_bytes

    def _refuse(self, entries: list[Entry]) -> None:
        """The log does not take these: those under way wait for Kafka, the others have failed."""
        for entry in entries:
            if entry.done:
                continue
            if entry.flying and not self._closing:
                self._young.append(entry)
            else:
                entry.done = True
                entry.answer(entry.error or _LOG_FULL)

    def _could_not_write(self, error: LogWriteError, now: float) -> None:
        self._retry_at = now + _WRITE_RETRY_S
        if self.broken is None:
            _log.error("the log cannot be written", error=str(error))
        self.broken = str(error)

    def _take_number(self) -> int:
        self._next += 1
        return self._next - 1
