"""The settings of a pipeline: `config/<name>/default.toml` or `KSTREAM__PIPELINE__…` variables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kstream_agg.core.settings import ServiceSettings, SettingsGroup
from kstream_agg.pipeline.engine import EngineLimits
from kstream_agg.pipeline.loop import LoopSettings

__all__ = ["EngineSettings", "PipelineSettings"]


class EngineSettings(SettingsGroup):
    """`[pipeline]`: how a pipeline is run."""

    guarantee: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """exactly_once: records and offsets in one transaction; it covers what `produce` and a
    dead-letter topic write, not what a step does elsewhere."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes in the consumer group; what scales Python over CPU cores."""
    map_threads: int = Field(default=1, ge=1, le=64)
    """They pay only where the map lets other threads run: waiting, or working outside Python."""
    batch_records: int = Field(default=10_000, ge=1)
    """Most records of one poll."""
    commit_interval_s: float = Field(default=1.0, gt=0)
    waiting_records: int = Field(default=20_000, ge=1)
    """Most records that wait in front of a step; more make reading pause."""
    stop_within_s: float = Field(default=10.0, gt=0)
    """How long open batches may take at shutdown, and when partitions are given up."""
    stuck_after_s: float = Field(default=60.0, gt=0)
    """A step that works or waits for longer makes /healthz unhealthy."""

    @property
    def limits(self) -> EngineLimits:
        """For the engine."""
        return EngineLimits(
            map_threads=self.map_threads,
            waiting_records=self.waiting_records,
            stuck_after_s=self.stuck_after_s,
        )

    @property
    def loop(self) -> LoopSettings:
        """For the consumer loop."""
        return LoopSettings(self.batch_records, self.commit_interval_s, self.stop_within_s)


class PipelineSettings(ServiceSettings):
    """A pipeline's settings."""

    pipeline: EngineSettings = EngineSettings()
