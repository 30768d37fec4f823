"""Measure, and print one JSON line a figure: `make bench`, `make bench ONLY=name`.

Figures go to standard output, what a person wants to know meanwhile to standard error. A floor
that is missed is shown, not an error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import bench_agg_producer
import bench_agg_recovery
import bench_agg_sweep
import bench_batch_sink
import bench_client
import bench_demo_start
import bench_pipeline
import bench_push_proxy
import bench_raw_producer
import bench_sink
from kstream_agg.core.errors import KStreamError
from kstream_agg.core.logs import configure_logging
from kstream_agg.core.settings import LogSettings
from kstream_agg.stack.testing import LocalStack, open_folder
from processes import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints
    from measurement import Measurement

    OnStack = Callable[[StackEndpoints, Path, int], Iterator[Measurement]]

_ON_STACK: Final[dict[str, OnStack]] = {
    "raw_producer": bench_raw_producer.measure,
    "agg_producer": bench_agg_producer.measure,
    "agg_recovery": bench_agg_recovery.measure,
    "sink": bench_sink.measure,
    "batch_sink": bench_batch_sink.measure,
    "push_proxy": bench_push_proxy.measure,
    "pipeline": bench_pipeline.measure,
    "client": bench_client.measure,
}
_BY_NAME_ONLY: Final[dict[str, OnStack]] = {"agg_sweep": bench_agg_sweep.measure}
_DEMO: Final = "demo_start"
# What else would run takes its share of the machine.
_KAFKA_ALONE: Final = frozenset(
    {
        "agg_producer",
        "agg_recovery",
        "agg_sweep",
        "batch_sink",
        "client",
        "pipeline",
        "push_proxy",
    }
)
_FEW: Final = ("kafka", "schema-registry")


def main() -> None:
    """Run the benchmarks that are asked for; all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=[*_ON_STACK, *_BY_NAME_ONLY, _DEMO], help="this one alone"
    )
    parser.add_argument("--runs", type=int, default=3, help="repeats (default 3)")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    names = [options.only] if options.only else [*_ON_STACK, _DEMO]
    configure_logging(LogSettings(level="warning"), "bench")
    # Ended from outside, it must still stop what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load = ", ".join(f"{minutes:.1f}" for minutes in os.getloadavg())
    say(f"{os.cpu_count()} cores, load before the start {load} (1, 5, 15 minutes)")
    try:
        with open_folder("kstream-bench-") as folder:
            _run(names, folder, options.runs)
    except KStreamError as error:
        sys.exit(f"{error}" + (f"\n{error.remedy}" if error.remedy else ""))
    except KeyboardInterrupt:
        sys.exit(130)


def _run(names: list[str], folder: Path, runs: int) -> None:
    benches = _ON_STACK | _BY_NAME_ONLY
    on_stack = [name for name in names if name in benches]
    if on_stack:
        only = _FEW if _KAFKA_ALONE.issuperset(on_stack) else ()
        say(f"starting a stack of {', '.join(only) or 'all components'}")
        with LocalStack(folder / "stack", only=only) as stack:
            for name in on_stack:
                _report(benches[name](stack.endpoints, folder, runs))
    if _DEMO in names:
        with contextlib.closing(bench_demo_start.measure(folder)) as found:
            _report(found)


def _report(found: Iterable[Measurement]) -> None:
    for measurement in found:
        print(measurement.line(), flush=True)


if __name__ == "__main__":
    main()
