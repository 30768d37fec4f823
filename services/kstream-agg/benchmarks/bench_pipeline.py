"""A pipeline: what the engine costs beside a bare loop, and when map threads pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.names import channel_topic
from measurement import Measurement
from processes import reference, say
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_TRADES: Final = 500_000
_CURRENCY: Final = "PIPE"
_THREADS: Final = 4
_MAPS: Final = {"json": 100_000, "zlib": 50_000, "wait": 8_000}
"""Kinds of map to the number of records that they are measured with."""


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Read one topic `runs` times with each kind of map."""
    del folder
    topic = channel_topic(f"trades.option.{_CURRENCY}.100ms")
    say(f"pipeline: filling {topic} with {_TRADES:,} trades")
    prefill(endpoints, topic, _TRADES, _CURRENCY)
    servers = endpoints.bootstrap_servers

    def run(total: int, how: str, threads: int) -> dict[str, Any]:
        return reference("pipeline_consume.py", servers, topic, total, how, threads)

    found, bare = [], []
    for number in range(1, runs + 1):
        found.append(run(_TRADES, "touch", 1))
        bare.append(reference("bare_consume.py", servers, topic, _TRADES))
        say(f"pipeline {number}/{runs}: {_per_s(found[-1]):,.0f}, bare {_per_s(bare[-1]):,.0f}")
    yield Measurement(
        "pipeline.records_per_s",
        "records/s",
        tuple(map(_per_s, found)),
        tuple(map(_per_s, bare)),
        details={"records": _TRADES},
    )
    yield Measurement(
        "pipeline.cpu_s_per_million",
        "CPU-s/million",
        tuple(one["cpu_s"] * 1e6 / one["records"] for one in found),
        tuple(one["cpu_s"] * 1e6 / one["records"] for one in bare),
        better="lower",
    )
    for how, total in _MAPS.items():
        say(f"pipeline: {how} with {_THREADS} map threads and with 1")
        yield Measurement(
            f"pipeline.map_threads_{how}",
            "records/s",
            tuple(_per_s(run(total, how, _THREADS)) for _ in range(runs)),
            tuple(_per_s(run(total, how, 1)) for _ in range(runs)),
            details={"records": total, "threads": _THREADS, "reference_threads": 1},
        )


def _per_s(one: dict[str, Any]) -> float:
    return float(one["records"] / one["seconds"])
