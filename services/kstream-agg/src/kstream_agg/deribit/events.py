"""What a session tells the client: frames to send, trades, and how the subscription stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from kstream_agg.core.errors import ContractError
    from kstream_agg.deribit.frames import TradeBatch

__all__ = [
    "BadFrame",
    "ChannelsMissing",
    "Event",
    "Ignored",
    "Lost",
    "Notice",
    "Refused",
    "Send",
    "Subscribed",
    "Trades",
]


@dataclass(frozen=True, slots=True)
class Send:
    """Send this frame."""

    text: str = field(repr=False)
    """Not for logs: a login's holds the secret."""


@dataclass(frozen=True, slots=True)
class Trades:
    """Trades of a channel that was asked for."""

    batch: TradeBatch
    frame: bytes = field(default=b"", repr=False, compare=False)
    """What they were decoded from."""


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that cannot be understood; it is to be kept as a dead letter."""

    frame: bytes
    error: Exception


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Every channel asked for is acknowledged."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChannelsMissing:
    """The exchange has left channels out; they will be asked for again in `retry_s` seconds."""

    channels: tuple[str, ...]
    reason: str
    retry_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The exchange does not give us the channels, or not let us in; asking again does not help."""

    error: ContractError


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is of no use any more: close it, and open the next after `wait_s` at least."""

    reason: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Notice:
    """The exchange says something that people should know of."""

    message: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message that means nothing to us."""

    what: str


Event: TypeAlias = (
    Send | Trades | BadFrame | Subscribed | ChannelsMissing | Refused | Lost | Notice | Ignored
)
