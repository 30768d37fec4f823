"""A sink's configuration for small steps, at last row by row, and the way back.

When a sink that takes one record at a time fails, the offset it has committed is that of the record
at fault. What the settings were before stands beside them in the same configuration, under keys the
connector does not know: whoever finds it can put it back, also after a crash, and no other program
need be asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_narrowed", "narrowed", "records_at_once", "widened"]

_BATCH: Final = "batch.size"
_POLL: Final = "consumer.override.max.poll.records"
_FETCH: Final = "consumer.override.max.partition.fetch.bytes"
_KEYS: Final = (_BATCH, _POLL, _FETCH)
_POLL_DEFAULT: Final = 500  # Kafka's
_KEPT: Final = "kstream.watch."


def is_narrowed(config: Mapping[str, str]) -> bool:
    """Whether the sink is to go by small steps."""
    return any(key.startswith(_KEPT) for key in config)


def narrowed(config: Mapping[str, str], at_once: int) -> dict[str, str]:
    """The configuration for taking so many records at once.

    Args:
        config: The sink's own, or one that is narrowed already.
        at_once: Records.
    """
    own = widened(config)
    kept = {_KEPT + key: own.get(key, "") for key in _KEYS}
    small = {
        _BATCH: str(at_once),
        # Of a poll that fails nothing is committed, however small its batches are.
        _POLL: str(at_once),
        # The consumer hands out what it has fetched of one partition before it turns to the next:
        # with its usual megabyte, thousands of rows of others would come before the one at fault.
        # A producer's batch is given whole all the same.
        _FETCH: "1",
    }
    return own | kept | small


def widened(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration as it was before; one that is not narrowed stays as it is."""
    if not is_narrowed(config):
        return dict(config)
    rest = {
        key: value
        for key, value in config.items()
        if key not in _KEYS and not key.startswith(_KEPT)
    }
    kept = {key: config.get(_KEPT + key, "") for key in _KEYS}
    return rest | {key: value for key, value in kept.items() if value}


def records_at_once(config: Mapping[str, str]) -> int:
    """How many records an attempt can hold."""
    text = config.get(_POLL, "")
    return int(text) if text.isdecimal() else _POLL_DEFAULT
