"""Token buckets that all workers share, and the limits built of them.

The buckets live in a small file mapped into every worker: slots of (key, tokens, time), found by
hash with a few probes. A full table gives up the bucket that was touched longest ago: it has
refilled most. One advisory lock guards the table; it is held for microseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.proxy.settings import RateLimitSettings

__all__ = ["Bucket", "Limits", "SharedBuckets", "Verdict"]

_SLOT: Final = struct.Struct("<Qdd")
_PROBES: Final = 8
_SLOTS: Final = 1 << 14
_MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit: `capacity` at once, `rate` tokens a second after that."""

    capacity: float
    rate: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bucket says.

    Args:
        allowed: Whether the tokens were taken.
        remaining: What is left.
        wait_s: Seconds until as many tokens are there, 0 when they were.
    """

    allowed: bool
    remaining: float
    wait_s: float


class SharedBuckets:
    """The table of buckets.

    Args:
        path: The file; `create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self._file, _SLOTS * _SLOT.size)

    @staticmethod
    def create(path: Path) -> None:
        """Make an empty table."""
        path.write_bytes(bytes(_SLOTS * _SLOT.size))

    def take(self, key: str, bucket: Bucket, amount: float, now_s: float) -> Verdict:
        """Take tokens, all or none.

        Args:
            key: Whose bucket.
            bucket: Its limit.
            amount: How many tokens.
            now_s: The wall-clock time in seconds; all workers must mean the same.
        """
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") or 1
        with self._locked():
            place = self._place(number)
            found, tokens, then = _SLOT.unpack_from(self._map, place)
            if found != number:
                tokens, then = bucket.capacity, now_s
            tokens = min(bucket.capacity, tokens + max(0.0, now_s - then) * bucket.rate)
            allowed = tokens >= amount
            if allowed:
                tokens -= amount
            _SLOT.pack_into(self._map, place, number, tokens, now_s)
        wait = 0.0 if allowed else (amount - tokens) / bucket.rate
        return Verdict(allowed, tokens, wait)

    def close(self) -> None:
        """Unmap the table."""
        self._map.close()
        os.close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _place(self, number: int) -> int:
        """The offset of this bucket's slot, of a free one, or of the one touched longest ago."""
        oldest, age = 0, float("inf")
        for step in range(_PROBES):
            place = ((number + step) % _SLOTS) * _SLOT.size
            found, _tokens, then = _SLOT.unpack_from(self._map, place)
            if found in (number, 0):
                return place
            if then < age:
                oldest, age = place, then
        return oldest


class Limits:
    """The proxy's rate limits, as settings and shared table say.

    Args:
        settings: The limits.
        buckets: The shared table.
    """

    def __init__(self, settings: RateLimitSettings, buckets: SharedBuckets) -> None:
        self._buckets = buckets
        self._topics = {
            rule.topic_name: Bucket(
                float(rule.max_requests_per_minute), rule.max_requests_per_minute / _MINUTE_S
            )
            for rule in (settings.rules if settings.enabled else ())
        }
        clients = settings.clients if settings.enabled else None
        self.client = Bucket(float(clients.burst), clients.records_per_second) if clients else None
        """The limit of every client; None when there is none."""

    @property
    def topics(self) -> frozenset[str]:
        """The topics that are limited."""
        return frozenset(self._topics)

    def topic(self, topic: str, now_s: float) -> Verdict:
        """Count one record against its topic's limit."""
        bucket = self._topics.get(topic)
        if bucket is None:
            return Verdict(allowed=True, remaining=float("inf"), wait_s=0.0)
        return self._buckets.take(f"topic {topic}", bucket, 1, now_s)

    def take_client(self, client: str, records: int, now_s: float) -> Verdict:
        """Count a request's records against its client's limit, all or none."""
        if self.client is None:
            return Verdict(allowed=True, remaining=float("inf"), wait_s=0.0)
        return self._buckets.take(f"client {client}", self.client, records, now_s)

    def client_headers(self, verdict: Verdict) -> tuple[tuple[str, str], ...]:
        """The `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers) of a client's answer."""
        if self.client is None:
            return ()
        window = max(1, round(self.client.capacity / self.client.rate))
        refill = max(0, round((self.client.capacity - verdict.remaining) / self.client.rate))
        return (
            ("ratelimit-policy", f'"client";q={int(self.client.capacity)};w={window}'),
            ("ratelimit", f'"client";r={int(verdict.remaining)};t={refill}'),
        )
