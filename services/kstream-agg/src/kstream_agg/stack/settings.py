"""Settings of the local stack: `config/stack/default.toml`, environment `KSTREAM__…`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotation at run time
from typing import Final, Literal

from pydantic import Field

from kstream_agg.core.settings import (
    ServiceSettings,
    SettingsGroup,
    config_dir,
    load_settings,
)

__all__ = [
    "MAX_BROKERS",
    "ArtifactSettings",
    "Kind",
    "MemorySettings",
    "PortSettings",
    "Profile",
    "RestartSettings",
    "StackSettings",
    "cluster_data_dir",
    "default_data_dir",
    "kind_of",
    "load_stack_settings",
]

MAX_BROKERS: Final = 7
Profile = Literal["base", "live", "demo"]
Kind = Literal["live", "demo"]
"""Whether a folder's trades are the market's or simulated."""


class PortSettings(SettingsGroup):
    """`[ports]`: where the components listen, all of them on 127.0.0.1 only."""

    kafka: int = Field(default=9092, gt=0, lt=65536)
    kafka_controller: int = Field(default=9093, gt=0, lt=65536)
    kafka_more: int = Field(default=9192, gt=0, lt=65520)
    """Of a second broker; its controller and further brokers take the ports behind it."""
    registry: int = Field(default=8081, gt=0, lt=65536)
    registry_management: int = Field(default=8082, gt=0, lt=65536)
    connect: int = Field(default=8083, gt=0, lt=65536)
    postgres: int = Field(default=5432, gt=0, lt=65536)
    zipkin: int = Field(default=9411, gt=0, lt=65536)
    simulator: int = Field(default=8090, gt=0, lt=65536)
    raw_producer_http: int = Field(default=9101, gt=0, lt=65536)
    agg_producer_http: int = Field(default=9102, gt=0, lt=65536)
    simulator_http: int = Field(default=9103, gt=0, lt=65536)
    connectors_watch_http: int = Field(default=9105, gt=0, lt=65536)

    def shifted(self, offset: int) -> PortSettings:
        """All ports `offset` higher.

        Raises:
            pydantic.ValidationError: One of them is no port any more.
        """
        return PortSettings(**{name: port + offset for name, port in self.model_dump().items()})


class MemorySettings(SettingsGroup):
    """`[memory]`: heap limits of the Java components, in MB."""

    kafka_mb: int = Field(default=384, ge=192)
    registry_mb: int = Field(default=256, ge=192)
    connect_mb: int = Field(default=384, ge=256)
    zipkin_mb: int = Field(default=128, ge=96)


class RestartSettings(SettingsGroup):
    """`[restart]`: how a component that died is started again."""

    backoff_initial_s: float = Field(default=1.0, gt=0)
    backoff_max_s: float = Field(default=60.0, gt=0)
    stable_s: float = Field(default=60.0, gt=0)
    """A component that ran as long begins with the initial back-off again."""


class ArtifactSettings(SettingsGroup):
    """`[artifacts]`: where the Java files come from."""

    repository: str | None = None
    """Base address of a Maven repository; default Maven's public one."""


class StackSettings(ServiceSettings):
    """The local stack."""

    data_dir: Path | None = None
    """Default: `.data/live` or `.data/demo` in the checkout."""
    ports: PortSettings = PortSettings()
    memory: MemorySettings = MemorySettings()
    restart: RestartSettings = RestartSettings()
    artifacts: ArtifactSettings = ArtifactSettings()


def load_stack_settings(*, folder: Path | None = None) -> StackSettings:
    """The stack's settings from file and environment.

    Raises:
        SettingsError: Something in them is wrong.
    """
    return load_settings(StackSettings, "stack", folder=folder)


def kind_of(profile: Profile) -> Kind:
    """What a profile's trades are; the servers alone count as live."""
    return "demo" if profile == "demo" else "live"


def cluster_data_dir() -> Path:
    """`.data/cluster` beside the `config/` folder: the stack with several brokers."""
    return config_dir().parent / ".data" / "cluster"


def default_data_dir(profile: Profile) -> Path:
    """`.data/live` or `.data/demo` beside the `config/` folder."""
    return config_dir().parent / ".data" / kind_of(profile)
