"""Which topics exist: known ones at no cost, unknown ones by asking Kafka.

Topics are not created by the way: one that does not exist is a 404, unless `topic.create` is set.
What is known is kept in the log, so that a proxy that starts while Kafka is away can accept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import KStreamError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.proxy.outcomes import Failure
from kstream_agg.proxy.requests import topic_failure
from kstream_agg.proxy.tallies import TopicTally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Topics"]

_log = get_logger(__name__)

_REQUEST_TIMEOUT_S: Final = 3.0
# A topic that was missing is asked for again after this; until then its 404 costs nothing.
_MISSING_FOR_S: Final = 2.0
_MISSING_LIMIT: Final = 10_000
_CANNOT_TELL: Final = "Kafka is away, and whether topic '{}' exists is not known"


class Topics:
    """The topics that exist.

    Args:
        fetch: Reads all topics and their numbers of partitions; blocking.
        create: Creates a topic, blocking; None when topics are not created.
        keep: Remembers what is known for the next start; None when nothing does.
        known: What was remembered.
        monotonic: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        fetch: Callable[[float], dict[str, int]],
        *,
        create: Callable[[str], None] | None = None,
        keep: Callable[[dict[str, int]], Awaitable[None]] | None = None,
        known: dict[str, int] | None = None,
        monotonic: Callable[[], float],
    ) -> None:
        self._fetch = fetch
        self._create = create
        self._keep = keep
        self._monotonic = monotonic
        self._missing: dict[str, float] = {}
        self._refreshing: asyncio.Task[bool] | None = None
        self.tallies: dict[str, TopicTally] = {}
        """Every topic that was ever known, with its numbers."""
        self.known: dict[str, TopicTally] = {}
        """The topics that exist, as far as is known."""
        self._take_over(known or {})

    async def refresh(self) -> bool:
        """Ask Kafka anew; callers at the same time share one question.

        Returns:
            Whether it answered.
        """
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._refresh())
        return await asyncio.shield(self._refreshing)

    async def find(self, name: str) -> TopicTally | Failure:
        """A topic, or why a record for it cannot be taken."""
        found = self.known.get(name)
        if found is not None:
            return found
        failure = topic_failure(name)
        if failure is None and self._missing.get(name, 0.0) <= self._monotonic():
            failure = await self._look_for(name)
        return failure or self.known.get(name) or Failure(404, f"topic '{name}' does not exist")

    async def _look_for(self, name: str) -> Failure | None:
        """Ask for a topic, create it if that is wanted; a failure when neither can be done."""
        if not await self.refresh():
            return Failure(503, _CANNOT_TELL.format(name), 1)
        if name not in self.known and self._create is not None:
            failure = await self._make(name)
            if failure is not None:
                return failure
        if name not in self.known:
            if len(self._missing) >= _MISSING_LIMIT:
                self._missing.clear()
            self._missing[name] = self._monotonic() + _MISSING_FOR_S
        return None

    async def _refresh(self) -> bool:
        try:
            found = await asyncio.to_thread(self._fetch, _REQUEST_TIMEOUT_S)
        except KStreamError as error:
            _log.debug("the topics cannot be read", error=str(error))
            return False
        finally:
            self._refreshing = None
        before = {name: tally.partitions for name, tally in self.known.items()}
        self._take_over(found)
        if found != before and self._keep is not None:
            try:
                await self._keep(found)
            except KStreamError as error:
                _log.warning("the known topics cannot be kept", error=str(error))
        return True

    async def _make(self, name: str) -> Failure | None:
        assert self._create is not None  # noqa: S101 - the caller has looked
        try:
            await asyncio.to_thread(self._create, name)
        except UnavailableError:
            return Failure(503, f"Kafka is away, topic '{name}' cannot be created", 1)
        except KStreamError as error:
            return Failure(404, f"topic '{name}' does not exist and cannot be created: {error}")
        await self.refresh()
        return None

    def _take_over(self, found: dict[str, int]) -> None:
        for name, partitions in found.items():
            tally = self.tallies.setdefault(name, TopicTally(name, partitions))
            tally.partitions = partitions
            self.known[name] = tally
            self._missing.pop(name, None)
        for name in self.known.keys() - found.keys():
            del self.known[name]
