"""What one benchmark reports: a value, a reference of the same run, and their ratio."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata

import confluent_kafka

__all__ = ["Measurement", "versions"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure.

    Args:
        name: `benchmark.figure`, e.g. `raw_producer.trades_per_s`.
        unit: E.g. `trades/s`.
        value: What was measured.
        reference: The same of a bare loop in the same run; None where there is none.
        better: `higher` or `lower`.
        floor: The value that is asked for; None where nothing is.
    """

    name: str
    unit: str
    value: float
    reference: float | None = None
    better: str = "higher"
    floor: float | None = None

    def line(self) -> str:
        """One line of JSON."""
        ratio = None if not self.reference else round(self.value / self.reference, 3)
        return json.dumps(
            {
                "name": self.name,
                "unit": self.unit,
                "value": round(self.value, 3),
                "reference": None if self.reference is None else round(self.reference, 3),
                "ratio": ratio,
                "better": self.better,
                "floor": self.floor,
                "versions": versions(),
                "command": f"make bench ONLY={self.name.partition('.')[0]}",
            }
        )


def versions() -> dict[str, str | int]:
    """What the figures depend on."""
    return {
        "kstream-agg": metadata.version("kstream-agg"),
        "python": platform.python_version(),
        "confluent-kafka": confluent_kafka.version(),
        "librdkafka": confluent_kafka.libversion()[0],
        "polars": metadata.version("polars"),
        "kafka": "4.3.1",
        "cores": os.cpu_count() or 0,
    }
