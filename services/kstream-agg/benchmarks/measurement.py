"""What one benchmark reports: a value, a reference of the same run, and their ratio."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median

import confluent_kafka

__all__ = ["Measurement", "versions"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure, measured once or several times.

    Args:
        name: `benchmark.figure`, e.g. `raw_producer.trades_per_s`.
        unit: E.g. `trades/s`.
        values: What was measured, one a repeat; the median is reported.
        references: The same of a bare loop in the same run; empty where there is none.
        better: `higher` or `lower`.
        floor: The value that is asked for, a ceiling where lower is better; None where nothing is.
        asked_ratio: The ratio to the reference that is asked for, a ceiling where lower is better.
        details: Further facts of this figure, reported as they are.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    references: tuple[float, ...] = ()
    better: str = "higher"
    floor: float | None = None
    asked_ratio: float | None = None
    details: dict[str, object] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of the values."""
        return median(self.values)

    @property
    def reference(self) -> float | None:
        """The median of the references; None without any."""
        return median(self.references) if self.references else None

    @property
    def ratio(self) -> float | None:
        """Value to reference; None without a reference."""
        return self.value / self.reference if self.reference else None

    @property
    def meets_floor(self) -> bool | None:
        """Whether median and ratio are as good as is asked; None where nothing is asked."""
        asked = [(self.value, self.floor), (self.ratio, self.asked_ratio)]
        answers = [
            found >= wanted if self.better == "higher" else found <= wanted
            for found, wanted in asked
            if found is not None and wanted is not None
        ]
        return all(answers) if answers else None

    def line(self) -> str:
        """One line of JSON."""
        reference = self.reference
        return json.dumps(
            {
                "name": self.name,
                "unit": self.unit,
                "value": _rounded(self.value),
                "min": _rounded(min(self.values)),
                "max": _rounded(max(self.values)),
                "runs": len(self.values),
                "reference": None if reference is None else _rounded(reference),
                "ratio": None if self.ratio is None else round(self.ratio, 3),
                "better": self.better,
                "floor": self.floor,
                "asked_ratio": self.asked_ratio,
                "meets_floor": self.meets_floor,
                **self.details,
                "versions": versions(),
                "command": f"make bench ONLY={self.name.partition('.')[0]}",
            }
        )


def versions() -> dict[str, str | int]:
    """What the figures depend on."""
    return {
        "kstream-agg": metadata.version("kstream-agg"),
        "python": platform.python_version(),
        "confluent-kafka": metadata.version("confluent-kafka"),
        "librdkafka": confluent_kafka.libversion()[0],
        "polars": metadata.version("polars"),
        "psycopg": metadata.version("psycopg"),
        "kafka": "4.3.1",
        "kernel": platform.release(),
        "cores": os.cpu_count() or 0,
    }


def _rounded(number: float) -> float:
    """Four digits behind the comma for small numbers, none for large ones."""
    return round(number, 4 if abs(number) < 100 else 1)
