"""Settings of the agg-producer."""

from __future__ import annotations

from pydantic import Field

from kstream_agg.aggregate.rules import WindowRules
from kstream_agg.core.settings import Seconds, ServiceSettings, SettingsGroup, WholeSeconds

__all__ = ["AggProducerSettings", "ConsumeSettings", "EwmaSettings", "WindowSettings"]


class WindowSettings(SettingsGroup):
    """`[window]`: all in seconds, or texts such as `5min`."""

    period: WholeSeconds = Field(default=300, ge=1, le=7 * 86_400)
    grace: Seconds = Field(default=0.0, ge=0)
    allowed_lateness: Seconds = Field(default=2.0, ge=0)
    future_skew: Seconds = Field(default=60.0, ge=0)
    idle_timeout: Seconds = Field(default=5.0, ge=0)


class EwmaSettings(SettingsGroup):
    """`[ewma]`: `n` sets alpha = 2/(n+1)."""

    n: int = Field(default=300, ge=1)


class ConsumeSettings(SettingsGroup):
    """`[consume]`: batches, commits, and when /healthz calls it stuck."""

    batch_records: int = Field(default=10_000, ge=1, le=1_000_000)
    commit_interval_s: float = Field(default=1.0, gt=0)
    stuck_after_s: float = Field(default=60.0, gt=0)


class AggProducerSettings(ServiceSettings):
    """Everything the agg-producer can be told."""

    group_id: str = Field(default="agg-producer", min_length=1)
    window: WindowSettings = WindowSettings()
    ewma: EwmaSettings = EwmaSettings()
    consume: ConsumeSettings = ConsumeSettings()

    @property
    def rules(self) -> WindowRules:
        """What decides about windows."""
        return WindowRules(
            period_ms=self.window.period * 1000,
            grace_ms=round(self.window.grace * 1000),
            lateness_ms=round(self.window.allowed_lateness * 1000),
            skew_ms=round(self.window.future_skew * 1000),
            alpha=2 / (self.ewma.n + 1),
        )
