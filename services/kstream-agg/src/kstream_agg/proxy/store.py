"""The log's place on disk: LMDB, one folder a worker.

A commit is one LMDB transaction, flushed to disk before it returns: what was put is there after a
crash of the process or the machine. Each worker locks a folder (`slot-0`, `slot-1`, …) for itself;
a folder nobody has locked belongs to a worker that is gone, and whoever finds it takes it over.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

import lmdb

from kstream_agg.core.errors import KStreamError, UnavailableError
from kstream_agg.proxy.residency import release_mapped_pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self

__all__ = ["LogStore", "LogWriteError", "StoredBatch", "orphaned_slots", "take_slot"]

_SLOT_PREFIX: Final = "slot-"
_MAX_SLOTS: Final = 1024
# LMDB must have free pages even to delete: its map is larger than what the log may hold.
_MAP_FACTOR: Final = 2
_MAP_EXTRA: Final = 64 << 20
# What reading the log back may keep resident. Looking at the first bytes of a batch is reading
# it: the kernel maps what it has in its cache around them.
_RELEASE_EVERY: Final = 4 << 20

StoredBatch = tuple[int, bytes]
"""A batch's id and its encoded records."""


class LogWriteError(KStreamError):
    """The log could not be written: disk full, file damaged; what was given is not in it."""


class LogStore:
    """One worker's log; call from one thread at a time.

    Args:
        folder: Its slot.
        lock: The slot's lock file, held until `close`.
        max_bytes: What the log may hold; the map is made larger.

    Raises:
        UnavailableError: The files cannot be opened.
    """

    def __init__(self, folder: Path, lock: int, max_bytes: int) -> None:
        self.folder = folder
        self._lock = lock
        self._read_bytes = 0
        try:
            self._env = lmdb.open(
                str(folder),
                map_size=max_bytes * _MAP_FACTOR + _MAP_EXTRA,
                max_dbs=3,
                readahead=False,
                meminit=False,
            )
            self._batches = self._env.open_db(b"batches")
            self._parked = self._env.open_db(b"parked")
            self._topics = self._env.open_db(b"topics")
        except lmdb.Error as error:
            os.close(lock)
            raise UnavailableError(
                f"the log in '{folder}' cannot be opened: {error}",
                remedy="free the disk, or set wal.directory to a folder that can be written",
            ) from error

    def commit(
        self,
        put: Sequence[StoredBatch] = (),
        drop: Sequence[int] = (),
        park: Sequence[StoredBatch] = (),
    ) -> None:
        """Write and remove batches in one transaction, on disk when this returns.

        Args:
            put: Batches to keep.
            drop: Ids of batches that are done.
            park: Records that Kafka will never take, each as a batch of its own.

        Raises:
            LogWriteError: Nothing was changed.
        """
        try:
            with self._env.begin(write=True) as transaction:
                for number in drop:
                    transaction.delete(_key(number), db=self._batches)
                for number, blob in put:
                    transaction.put(_key(number), blob, db=self._batches, append=False)
                for number, blob in park:
                    transaction.put(_key(number), blob, db=self._parked)
        except (lmdb.Error, OSError) as error:
            raise LogWriteError(f"the log in '{self.folder}' cannot be written: {error}") from error

    def read(self, number: int) -> bytes | None:
        """A batch's records, None when there is no such batch."""
        with self._env.begin(db=self._batches) as transaction:
            found: bytes | None = transaction.get(_key(number))
        self._has_read(len(found or b""))
        return found

    def batches(self) -> list[tuple[int, int, int]]:
        """Id, number of records and size in bytes of each batch, oldest first."""
        found = []
        with (
            self._env.begin(db=self._batches, buffers=True) as transaction,
            transaction.cursor() as cursor,
        ):
            for key, value in cursor:
                size = len(value)
                found.append((int.from_bytes(bytes(key), "big"), _count(bytes(value[:5])), size))
                self._has_read(size)
        self._release()
        return found

    def parked(self) -> list[StoredBatch]:
        """The records that were set aside."""
        with self._env.begin(db=self._parked) as transaction, transaction.cursor() as cursor:
            return [(int.from_bytes(key, "big"), bytes(value)) for key, value in cursor]

    def unpark(self, numbers: Sequence[int]) -> None:
        """Forget records that were set aside."""
        with self._env.begin(write=True) as transaction:
            for number in numbers:
                transaction.delete(_key(number), db=self._parked)

    def topics(self) -> dict[str, int]:
        """The topics that were known, and their numbers of partitions."""
        with self._env.begin(db=self._topics) as transaction, transaction.cursor() as cursor:
            return {key.decode(): int.from_bytes(value, "big") for key, value in cursor}

    def keep_topics(self, topics: dict[str, int]) -> None:
        """Remember the known topics for a start without Kafka.

        Raises:
            LogWriteError: They could not be written.
        """
        try:
            with self._env.begin(write=True, db=self._topics) as transaction:
                transaction.drop(self._topics, delete=False)
                for name, partitions in topics.items():
                    transaction.put(name.encode(), partitions.to_bytes(4, "big"))
        except (lmdb.Error, OSError) as error:
            raise LogWriteError(f"the log in '{self.folder}' cannot be written: {error}") from error

    def close(self) -> None:
        """Close the files and free the slot."""
        self._env.close()
        os.close(self._lock)

    def _has_read(self, size: int) -> None:
        self._read_bytes += size
        if self._read_bytes >= _RELEASE_EVERY:
            self._release()

    def _release(self) -> None:
        self._read_bytes = 0
        release_mapped_pages(self.folder / "data.mdb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def take_slot(directory: Path, max_bytes: int) -> LogStore:
    """Open the first slot that nobody holds, a new one if need be.

    Raises:
        UnavailableError: The folder cannot be written.
    """
    for number in range(_MAX_SLOTS):
        found = _try_slot(directory / f"{_SLOT_PREFIX}{number}", max_bytes)
        if found is not None:
            return found
    raise UnavailableError(f"all {_MAX_SLOTS} slots of the log in '{directory}' are taken")


def orphaned_slots(directory: Path, max_bytes: int) -> Iterator[LogStore]:
    """The slots that exist and that nobody holds, opened one after another."""
    for folder in sorted(directory.glob(f"{_SLOT_PREFIX}*")):
        found = _try_slot(folder, max_bytes)
        if found is not None:
            yield found


def _try_slot(folder: Path, max_bytes: int) -> LogStore | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UnavailableError(
            f"the log's folder '{folder}' cannot be written: {error.strerror}",
            remedy="free the disk, or set wal.directory to a folder that can be written",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return LogStore(folder, lock, max_bytes)


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _count(head: bytes) -> int:
    """The length of a MessagePack array (https://github.com/msgpack/msgpack/blob/master/spec.md)."""
    if head[0] == 0xDC:
        return int.from_bytes(head[1:3], "big")
    if head[0] == 0xDD:
        return int.from_bytes(head[1:5], "big")
    return head[0] & 0x0F
