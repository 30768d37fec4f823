"""agg-producer: records/s by batch size, number of workers, and windows that hold a trade."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

from aggregating import aggregate
from kstream_agg.core.names import channel_topic
from measurement import Measurement
from processes import say
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_TRADES: Final = 1_000_000
_CURRENCY: Final = "SWEEP"
_BATCHES: Final = (1_000, 10_000, 50_000)
_WORKERS: Final = (1, 2)
_WINDOWS: Final = {
    1: {"WINDOW__PERIOD": "5min"},
    3: {"WINDOW__PERIODS": "1min,5min,1h"},
    5: {"WINDOW__PERIOD": "5min", "WINDOW__ADVANCE": "1min"},
}


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Aggregate one topic with each setting, `runs` times."""
    channel = f"trades.option.{_CURRENCY}.100ms"
    say(f"agg_sweep: filling {channel_topic(channel)} with {_TRADES:,} trades")
    prefill(endpoints, channel_topic(channel), _TRADES, _CURRENCY)
    for (windows, changes), batch, workers in product(_WINDOWS.items(), _BATCHES, _WORKERS):
        name = f"windows_{windows}.batch_{batch}.workers_{workers}"
        settings = changes | {"CONSUME__BATCH_RECORDS": str(batch)}
        passes = [
            aggregate(endpoints, folder, channel, _TRADES, f"{name}-{run}", workers, **settings)
            for run in range(runs)
        ]
        rates = tuple(found.per_s for found in passes)
        costs = ", ".join(f"{found.cpu_s_per_million:.2f}" for found in passes)
        say(f"agg_sweep {name}: {', '.join(f'{rate:,.0f}' for rate in rates)} records/s")
        yield Measurement(
            f"agg_sweep.{name}",
            "records/s",
            rates,
            details={
                "cpu_s_per_million": costs,
                "rss_mb": round(max(found.rss_peak for found in passes) / 1e6),
            },
        )
