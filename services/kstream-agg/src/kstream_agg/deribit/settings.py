"""Settings of the raw-producer: where the exchange is, and how patient we are with it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic needs it when the class is made
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.names import channel_topic
from kstream_agg.core.settings import ServiceSettings, SettingsGroup, read_secret
from kstream_agg.deribit.login import Login

__all__ = [
    "CommitSettings",
    "ExchangeSettings",
    "HistorySettings",
    "RawProducerSettings",
    "SourceSettings",
]


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
    client_id: str | None = None
    """Of an API key of the exchange: `raw` channels need a login."""
    client_secret: SecretStr | None = None
    client_secret_file: Path | None = None
    queue_bytes: int = Field(default=67_108_864, ge=65_536)
    """Bytes of frames that may wait for Kafka; at so many, reading from the exchange stops."""
    lag_warning_s: float = Field(default=10.0, gt=0)
    """Trades received so long after they happened are worth a warning."""

    def login(self) -> Login | None:
        """A login for one connection; None where none is set.

        Raises:
            SettingsError: Only a part of it is set, or the secret's file cannot be read.
        """
        secret = read_secret(self.client_secret, self.client_secret_file)
        if (self.client_id is None) != (secret is None):
            raise SettingsError(
                "exchange.client_id and exchange.client_secret belong together",
                remedy="set both, or neither",
            )
        if self.client_id is None or secret is None:
            return None
        return Login(self.client_id, SecretStr(secret))


class HistorySettings(SettingsGroup):
    """`[history]`: how missing trades are fetched; times in seconds."""

    rest_url: str | None = Field(default=None, pattern=r"^https?://[^/\s]+")
    """The exchange's REST address; by default it is derived from `exchange.url`."""
    archive_url: str | None = Field(default=None, pattern=r"^https?://[^/\s]+")
    """Where trades older than a day are; by default the exchange's archive, or `rest_url`."""
    requests_per_s: float = Field(default=10.0, gt=0)
    concurrency: int = Field(default=4, ge=1, le=30)
    """Calls at once; the exchange allows 32 connections of an address."""
    timeout_s: float = Field(default=15.0, gt=0)
    page_trades: int = Field(default=1000, ge=2, le=1000)
    overlap_s: float = Field(default=60.0, ge=0)
    """A comparison begins so long before the end of the last one."""
    compare_every_s: float = Field(default=60.0, gt=0)
    """The topic is compared with the history so often; a frame that was lost with the last trade
    of an instrument shows in nothing else."""
    hole_patience_s: float = Field(default=1.0, ge=0)
    """A hole is asked for after so long: frames can overtake each other."""
    hole_attempts: int = Field(default=6, ge=1)
    """So often a host must have answered without a trade, before it counts as lost."""

    def rest_of(self, exchange_url: str) -> str:
        """The REST address that belongs to a websocket's."""
        if self.rest_url is not None:
            return self.rest_url.rstrip("/")
        parts = urlsplit(exchange_url)
        scheme = "https" if parts.scheme == "wss" else "http"
        return f"{scheme}://{parts.netloc}/api/v2"

    def archive_of(self, exchange_url: str) -> str:
        """The address of the archive that belongs to a websocket's."""
        if self.archive_url is not None:
            return self.archive_url.rstrip("/")
        host = urlsplit(exchange_url).hostname or ""
        if host in {"www.deribit.com", "streams.deribit.com"}:
            return "https://history.deribit.com/api/v2"
        return self.rest_of(exchange_url)


class SourceSettings(SettingsGroup):
    """`[source]`: where trades come from; by default from the exchange."""

    recording: Path | None = None
    """A recorded file instead: its trades go into the one channel's topic, then it ends."""


class CommitSettings(SettingsGroup):
    """`[commit]`: transactions of trades and progress."""

    interval_s: float = Field(default=0.01, gt=0, le=60)
    """A transaction is committed so long after its first trade."""
    records: int = Field(default=5_000, ge=1, le=50_000)
    """… or as soon as it holds so many."""


class RawProducerSettings(ServiceSettings):
    """Settings of the raw-producer."""

    source: SourceSettings = SourceSettings()
    exchange: ExchangeSettings = ExchangeSettings()
    history: HistorySettings = HistorySettings()
    commit: CommitSettings = CommitSettings()
    transactional_id: str = Field(default="raw-producer", min_length=1)
    """One program at a time may write under it: a second one takes over and ends the first."""

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

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source.recording is not None and len(self.channels) != 1:
            raise ValueError("source.recording needs exactly one channel")
        return self
