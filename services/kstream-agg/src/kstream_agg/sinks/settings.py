"""Settings of the sinks and of the tools that look at what they wrote."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

from kstream_agg.core.names import average_topic, channel_topic
from kstream_agg.core.settings import (
    PostgresSettings,
    RegistrySettings,
    Seconds,
    ServiceSettings,
    SettingsGroup,
    load_settings,
)

__all__ = [
    "AGG_SINK",
    "RAW_SINK",
    "WATCH",
    "AggregatorView",
    "ConnectSettings",
    "ToolSettings",
    "WatchPolicy",
    "WatchSettings",
    "WindowView",
    "comma_texts",
    "load_aggregator_view",
    "native_registry_url",
]

RAW_SINK = "raw-consumer-jdbc-sink"
AGG_SINK = "agg-consumer-jdbc-sink"
WATCH = "connectors-watch"


class ConnectSettings(SettingsGroup):
    """`[connect]`: Kafka Connect's REST API, and addresses as Connect's workers see them."""

    url: str = "http://127.0.0.1:8083"
    timeout_s: float = Field(default=10.0, gt=0)
    registry_url: str | None = None
    """The registry's own API for the converter; default: derived from `registry.url`."""
    postgres_url: str | None = None
    """The database's JDBC address; default: made from `[postgres]`."""


class ToolSettings(ServiceSettings):
    """What `connectors`, `verify`, `sql`, `consume` and `topics` need to find the stack."""

    postgres: PostgresSettings = PostgresSettings()
    connect: ConnectSettings = ConnectSettings()


class WatchPolicy(SettingsGroup):
    """`[watch]`: how failed sinks are brought back; times in seconds."""

    every_s: float = Field(default=2.0, gt=0)
    """Between two looks at the connectors."""
    backoff_initial_s: float = Field(default=2.0, gt=0)
    """Wait after the first restart of failed tasks; it doubles with each that did not help."""
    backoff_max_s: float = Field(default=300.0, gt=0)
    stable_s: float = Field(default=60.0, gt=0)
    """A sink that has run for so long begins with the initial back-off again."""
    search_after: int = Field(default=4, ge=1)
    """Restarts that did not help before a row is looked for, whatever the sink says."""
    rows_per_hour: int = Field(default=100, ge=0)
    """So many refused rows of a sink are set aside in an hour, at most."""
    step_timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for Connect to stop or start a sink, and for a run row by row."""


class WatchSettings(ToolSettings):
    """The service `connectors-watch`."""

    watch: WatchPolicy = WatchPolicy()


def comma_texts(value: object) -> object:
    """A list, or of a text the parts between commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class WindowView(BaseModel):
    """Of the aggregator's `[window]`, what decides which windows must exist; all in seconds."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    period: Seconds = 300.0
    periods: Annotated[tuple[Seconds, ...], NoDecode, BeforeValidator(comma_texts)] = ()
    advance: Seconds | None = None
    grace: Seconds = 0.0
    allowed_lateness: Seconds = 2.0

    @property
    def families(self) -> tuple[tuple[int, int], ...]:
        """Length and advance (s) of each family of windows."""
        periods = [round(period) for period in self.periods or (self.period,)]
        return tuple((period, round(self.advance or period)) for period in periods)


class AggregatorView(ServiceSettings):
    """The aggregator's settings as its readers see them: keys they do not use are passed over."""

    model_config: ClassVar = ServiceSettings.model_config | {"extra": "ignore"}

    group_id: str = "agg-producer"
    group_by: Literal["instrument", "channel"] = "instrument"
    window: WindowView = WindowView()

    @property
    def average_topics(self) -> tuple[str, ...]:
        """The topics of averages, in the order of the raw topics and of the windows."""
        return tuple(name for topic in self.raw_topics for name in self.average_topics_of(topic))

    def average_topics_of(self, raw_topic: str) -> tuple[str, ...]:
        """The topics of one raw topic's averages, in the order of `window.families`."""
        return tuple(
            average_topic(raw_topic, period, advance) for period, advance in self.window.families
        )

    def group_of(self, raw_topic: str) -> str | None:
        """What all trades of a raw topic are counted as; None: each as its instrument's."""
        if self.group_by == "instrument":
            return None
        return next(item for item in self.channels if channel_topic(item) == raw_topic)


def load_aggregator_view() -> AggregatorView:
    """What `config/agg-producer/default.toml` and the environment say.

    Raises:
        SettingsError: As `load_settings`.
    """
    return load_settings(AggregatorView, "agg-producer")


def native_registry_url(registry: RegistrySettings) -> str:
    """The registry's own API (v2), which the converter speaks, beside its Confluent one."""
    return registry.url.split("/apis/")[0].rstrip("/") + "/apis/registry/v2"
