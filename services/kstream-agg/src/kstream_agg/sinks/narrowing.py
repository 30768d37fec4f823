"""A sink's configuration for going row by row, and the way back.

With these two settings the sink writes one record at a time, and the offset it has committed when
it fails is that of the record at fault. What they were before stands beside them in the same
configuration, under keys the connector does not know: whoever finds it can put it back, also after
a crash, and no other program need be asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_narrowed", "narrowed", "records_at_once", "widened"]

_POLL: Final = "consumer.override.max.poll.records"
_POLL_DEFAULT: Final = 500  # Kafka's
_NARROW: Final = {
    "batch.size": "1",
    # A batch is never larger than a poll, and of a poll that fails nothing is committed.
    _POLL: "1",
}
_KEPT: Final = "kstream.watch."


def is_narrowed(config: Mapping[str, str]) -> bool:
    """Whether the sink is to go row by row."""
    return any(key.startswith(_KEPT) for key in config)


def narrowed(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration for going row by row; one that is already stays as it is."""
    if is_narrowed(config):
        return dict(config)
    kept = {_KEPT + key: config.get(key, "") for key in _NARROW}
    return {**config, **kept, **_NARROW}


def widened(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration as it was before; one that is not narrowed stays as it is."""
    if not is_narrowed(config):
        return dict(config)
    rest = {
        key: value
        for key, value in config.items()
        if key not in _NARROW and not key.startswith(_KEPT)
    }
    kept = {key: config.get(_KEPT + key, "") for key in _NARROW}
    return rest | {key: value for key, value in kept.items() if value}


def records_at_once(config: Mapping[str, str]) -> int:
    """How many records a failed attempt can have held, by the configuration as it was before."""
    text = widened(config).get(_POLL, "")
    return int(text) if text.isdecimal() else _POLL_DEFAULT
