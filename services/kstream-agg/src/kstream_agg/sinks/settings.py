"""Settings of the sinks and of the tools that look at what they wrote."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from kstream_agg.core.names import average_topic
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
    "AggregatorView",
    "ConnectSettings",
    "ToolSettings",
    "WindowView",
    "load_aggregator_view",
    "native_registry_url",
]

RAW_SINK = "raw-consumer-jdbc-sink"
AGG_SINK = "agg-consumer-jdbc-sink"


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


class WindowView(BaseModel):
    """Of the aggregator's `[window]`, what decides which windows must exist; all in seconds."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    period: Seconds = 300.0
    grace: Seconds = 0.0
    allowed_lateness: Seconds = 2.0


class AggregatorView(ServiceSettings):
    """The aggregator's settings as its readers see them: keys they do not use are passed over."""

    model_config: ClassVar = ServiceSettings.model_config | {"extra": "ignore"}

    group_id: str = "agg-producer"
    window: WindowView = WindowView()

    @property
    def average_topics(self) -> tuple[str, ...]:
        """The topics of averages, in the order of the raw topics."""
        return tuple(average_topic(topic, round(self.window.period)) for topic in self.raw_topics)


def load_aggregator_view() -> AggregatorView:
    """What `config/agg-producer/default.toml` and the environment say.

    Raises:
        SettingsError: As `load_settings`.
    """
    return load_settings(AggregatorView, "agg-producer")


def native_registry_url(registry: RegistrySettings) -> str:
    """The registry's own API (v2), which the converter speaks, beside its Confluent one."""
    return registry.url.split("/apis/")[0].rstrip("/") + "/apis/registry/v2"
