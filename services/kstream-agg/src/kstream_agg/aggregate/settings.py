"""Settings of the agg-producer."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from kstream_agg.aggregate.rules import EwmaRules, WindowRules, Windows
from kstream_agg.core.names import channel_topic
from kstream_agg.core.settings import Seconds, ServiceSettings, SettingsGroup, WholeSeconds

__all__ = ["AggProducerSettings", "ConsumeSettings", "EwmaSettings", "WindowSettings"]


Period = Annotated[WholeSeconds, Field(ge=1, le=7 * 86_400)]

# What one trade can be counted in: each window costs its share of every batch.
_MOST_WINDOWS: Final = 120
# exp() of a window's length over tau must stay a number.
_TAU_SHARE: Final = 500


def _texts(value: object) -> object:
    """A list, or of a text the parts between commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class WindowSettings(SettingsGroup):
    """`[window]`: all in seconds, or texts such as `5min`."""

    period: Period = 300
    periods: Annotated[tuple[Period, ...], NoDecode, BeforeValidator(_texts)] = ()
    """Several at once, in place of `period`."""
    advance: Period | None = None
    """From one window's begin to the next: hopping windows; None: the period, tumbling ones."""
    grace: Seconds = Field(default=0.0, ge=0)
    allowed_lateness: Seconds = Field(default=2.0, ge=0)
    future_skew: Seconds = Field(default=60.0, ge=0)
    idle_timeout: Seconds = Field(default=5.0, ge=0)
    retention: Seconds = Field(default=48 * 3600.0, ge=0)
    retained_limit: int = Field(default=200_000, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        periods = self.all_periods
        if len(set(periods)) < len(periods):
            raise ValueError("window.periods names a period twice")
        if self.advance is not None and self.advance > min(periods):
            raise ValueError("window.advance is longer than the shortest period")
        windows = sum(family.overlap for family in self.families)
        if windows > _MOST_WINDOWS:
            raise ValueError(
                f"each trade would be counted in {windows} windows, at most {_MOST_WINDOWS} are "
                "possible: take a longer window.advance"
            )
        return self

    @property
    def all_periods(self) -> tuple[int, ...]:
        """The periods, in seconds."""
        return self.periods or (self.period,)

    @property
    def families(self) -> tuple[Windows, ...]:
        """The windows of each period."""
        return tuple(
            Windows(period * 1000, (self.advance or period) * 1000) for period in self.all_periods
        )


class EwmaSettings(SettingsGroup):
    """`[ewma]`: `n` sets alpha = 2/(n+1); with `form = "time"`, `tau` (s) is used instead."""

    n: int = Field(default=300, ge=1)
    form: Literal["count", "time"] = "count"
    tau: Seconds = Field(default=60.0, gt=0)
    start: Literal["first", "zero"] = "first"
    reset: Literal["never", "window"] = "never"
    limit: int = Field(default=200_000, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.form == "time" and self.start == "zero":
            raise ValueError(
                "ewma.start = zero belongs to form = count: the time-decayed form has no value "
                "before its first trade"
            )
        return self


class ConsumeSettings(SettingsGroup):
    """`[consume]`: batches, commits, and when /healthz calls it stuck."""

    batch_records: int = Field(default=10_000, ge=1, le=1_000_000)
    commit_interval_s: float = Field(default=1.0, gt=0)
    stuck_after_s: float = Field(default=60.0, gt=0)


class AggProducerSettings(ServiceSettings):
    """Everything the agg-producer can be told."""

    group_id: str = Field(default="agg-producer", min_length=1)
    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    group_by: Literal["instrument", "channel"] = "instrument"
    workers: int = Field(default=1, ge=1, le=64)
    """Processes in the consumer group; the partitions are spread over them."""
    window: WindowSettings = WindowSettings()
    ewma: EwmaSettings = EwmaSettings()
    consume: ConsumeSettings = ConsumeSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        shortest_tau = max(self.window.all_periods) / _TAU_SHARE
        if self.ewma.form == "time" and self.ewma.tau < shortest_tau:
            raise ValueError(
                f"ewma.tau must be at least 1/{_TAU_SHARE} of the longest period: {shortest_tau} s"
            )
        return self

    @property
    def groups(self) -> dict[str, str]:
        """Raw topics whose trades count as one instrument's, and its name: the channel's."""
        if self.group_by == "instrument":
            return {}
        return {channel_topic(channel): channel for channel in self.channels}

    @property
    def rules(self) -> WindowRules:
        """What decides about windows."""
        window, ewma = self.window, self.ewma
        by_time = ewma.form == "time"
        return WindowRules(
            families=window.families,
            grace_ms=round(window.grace * 1000),
            lateness_ms=round(window.allowed_lateness * 1000),
            skew_ms=round(window.future_skew * 1000),
            retention_ms=round(window.retention * 1000),
            ewma=EwmaRules(
                alpha=0.0 if by_time else 2 / (ewma.n + 1),
                tau_ms=ewma.tau * 1000 if by_time else None,
                start=ewma.start,
                reset=ewma.reset,
                limit=ewma.limit,
            ),
            retained_limit=window.retained_limit,
            group_by=self.group_by,
        )
