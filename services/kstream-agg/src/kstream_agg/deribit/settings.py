"""`[exchange]` of the raw-producer: where the exchange is, and how patient we are with it."""

from __future__ import annotations

from pydantic import Field, field_validator

from kstream_agg.core.names import channel_topic
from kstream_agg.core.settings import ServiceSettings, SettingsGroup

__all__ = ["ExchangeSettings", "RawProducerSettings"]


class ExchangeSettings(SettingsGroup):
    """`[exchange]`: times in seconds."""

    url: str = Field(default="wss://www.deribit.com/ws/api/v2", pattern=r"^wss?://[^/\s]+")
    heartbeat_interval_s: int = Field(default=10, ge=10, le=60)
    """The exchange refuses less than 10."""
    subscribe_attempts: int = Field(default=3, ge=1)
    """How often a first start asks for channels the exchange leaves out, before it gives up."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    reconnect_min_s: float = Field(default=1.0, gt=0)
    reconnect_max_s: float = Field(default=60.0, gt=0)
    compression: bool = True
    """Offer permessage-deflate: a quarter of the traffic for some CPU."""
    max_frame_bytes: int = Field(default=8_388_608, ge=65_536)
    """A larger frame ends the session."""
    queue_trades: int = Field(default=20_000, ge=1)
    """Trades that may wait for Kafka; when they are so many, reading from the exchange stops."""


class RawProducerSettings(ServiceSettings):
    """Settings of the raw-producer."""

    exchange: ExchangeSettings = ExchangeSettings()

    @field_validator("channels", mode="after")
    @classmethod
    def _check_topics(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        """Two intervals of one channel deliver the same trades into the same topic."""
        seen: dict[str, str] = {}
        for channel in channels:
            other = seen.setdefault(channel_topic(channel), channel)
            if other != channel:
                raise ValueError(f"'{other}' and '{channel}' deliver the same trades; keep one")
        return channels
