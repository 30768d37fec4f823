"""agg-producer: records/s on a topic that is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kstream_agg.core.metrics import RECORDS_CONSUMED
from kstream_agg.core.names import channel_topic
from measurement import Measurement
from processes import Pass, Service, reference, say, watch
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_TRADES: Final = 1_000_000
_CURRENCY: Final = "AGG"
_CHANNEL: Final = f"trades.option.{_CURRENCY}.100ms"
_FLOOR: Final = 150_000


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Aggregate one topic `runs` times, each time as a new consumer group."""
    topic = channel_topic(_CHANNEL)
    say(f"agg_producer: filling {topic} with {_TRADES:,} trades")
    prefill(endpoints, topic, _TRADES, _CURRENCY)
    passes, bare = [], []
    for run in range(1, runs + 1):
        passes.append(_aggregate(endpoints, folder, topic, run))
        bare.append(reference("bare_consume.py", endpoints.bootstrap_servers, topic, _TRADES))
        say(
            f"agg_producer {run}/{runs}: {passes[-1].per_s:,.0f} records/s, "
            f"bare loop {bare[-1]['records'] / bare[-1]['seconds']:,.0f}"
        )
    yield Measurement(
        "agg_producer.records_per_s",
        "records/s",
        tuple(found.per_s for found in passes),
        tuple(found["records"] / found["seconds"] for found in bare),
        floor=_FLOOR,
        details={"records": _TRADES, "record_bytes": round(bare[0]["bytes"] / _TRADES)},
    )
    yield Measurement(
        "agg_producer.cpu_s_per_million",
        "CPU-s/million",
        tuple(found.cpu_s_per_million for found in passes),
        tuple(found["cpu_s"] * 1e6 / found["records"] for found in bare),
        better="lower",
    )
    yield Measurement(
        "agg_producer.rss_peak",
        "MB",
        tuple(found.rss_peak / 1e6 for found in passes),
        better="lower",
    )


def _aggregate(endpoints: StackEndpoints, folder: Path, topic: str, run: int) -> Pass:
    changes = {"CHANNELS": _CHANNEL, "GROUP_ID": f"bench-{run}"}
    with Service(("agg-producer",), endpoints.environment, folder, changes) as service:
        return watch(
            lambda: service.counter(RECORDS_CONSUMED.name, topic), _TRADES, service.process
        )
