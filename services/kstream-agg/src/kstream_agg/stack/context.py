"""What components are built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kstream_agg.stack.ports import bootstrap_servers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kstream_agg.stack.artifacts import ArtifactCache
    from kstream_agg.stack.layout import Layout
    from kstream_agg.stack.settings import (
        ArtifactSettings,
        MemorySettings,
        PortSettings,
        Profile,
        RestartSettings,
    )

__all__ = ["StackContext"]


@dataclass(frozen=True, slots=True)
class StackContext:
    """One stack: where its data, its programs and its ports are.

    Attributes:
        layout: Its data folder.
        ports: Where the components listen.
        memory: Their heaps.
        restart: How long to back off.
        artifacts: Where the Java files come from.
        cache: The Java files.
        profile: What it is started as.
        config: The folder with the services' settings.
        options: What the profile takes beside settings, such as `recording` and `loop` of a demo.
        brokers: How many Kafka brokers.
    """

    layout: Layout
    ports: PortSettings
    memory: MemorySettings
    restart: RestartSettings
    artifacts: ArtifactSettings
    cache: ArtifactCache
    profile: Profile
    config: Path
    options: Mapping[str, str] = field(default_factory=dict)
    brokers: int = 1

    @property
    def bootstrap_servers(self) -> str:
        """All brokers, as clients take them."""
        return bootstrap_servers(self.ports, self.brokers)
