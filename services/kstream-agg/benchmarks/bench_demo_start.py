"""The demo: seconds to the first row, memory of the whole stack, CPU of our services at idle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import psutil
import psycopg

from kstream_agg.core.errors import KStreamError, UnavailableError
from kstream_agg.core.settings import ENV_PREFIX, PostgresSettings
from kstream_agg.sinks.postgres import connect
from kstream_agg.stack import control
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.settings import PortSettings
from measurement import Measurement
from processes import say

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from kstream_agg.stack.state import StackStatus

__all__ = ["measure"]

_FIRST_ROW_S: Final = 300.0
_SETTLE_S: Final = 20.0  # the recording's past is through, Connect's compiler calm
_IDLE_S: Final = 30.0
_MAX_START_S: Final = 90.0
_MAX_RSS_MB: Final = 2_500.0
_MAX_IDLE_PERCENT: Final = 5.0
_OURS: Final = ("deribit-simulator", "raw-producer", "agg-producer")


def measure(folder: Path) -> Generator[Measurement]:
    """Start the demo once, in a folder and on ports of its own, look, and stop it."""
    names = list(PortSettings.model_fields)
    ports = PortSettings(**dict(zip(names, free_ports(len(names)), strict=True)))
    data = folder / "demo"
    settings = {"DATA_DIR": str(data)}
    settings |= {f"PORTS__{name.upper()}": str(port) for name, port in ports}
    environment = {ENV_PREFIX + name: value for name, value in settings.items()}
    began = time.monotonic()
    # What `make demo DETACH=1` runs.
    starting = subprocess.Popen(
        [sys.executable, "-m", "kstream_agg", "demo", "--detach"],
        env={**os.environ, **environment},
        stdout=sys.stderr,
    )
    try:
        first_row_s = _first_row(starting, data, ports.postgres) - began
        if starting.wait(_FIRST_ROW_S) != 0:
            raise UnavailableError("the demo did not become ready")
        say(f"demo_start: first row after {first_row_s:.1f} s")
        yield from _look(data, first_row_s)
    finally:
        if starting.poll() is None:
            starting.terminate()
            starting.wait()
        control.down(data)


def _first_row(starting: subprocess.Popen[bytes], data: Path, port: int) -> float:
    """When the first row was seen (monotonic s)."""
    deadline = time.monotonic() + _FIRST_ROW_S
    settings = PostgresSettings(port=port, password_file=Layout(data).postgres_password)
    while time.monotonic() < deadline:
        if starting.poll():
            raise UnavailableError("the demo did not start")
        try:
            with connect(settings) as connection:
                _wait_for_row(connection, deadline)
                return time.monotonic()
        except (KStreamError, psycopg.Error):
            time.sleep(0.2)
    raise UnavailableError(f"no row in Postgres after {_FIRST_ROW_S:.0f} s")


def _wait_for_row(connection: psycopg.Connection[Any], deadline: float) -> None:
    while time.monotonic() < deadline:
        made = connection.execute("SELECT to_regclass('trades_option_btc')").fetchone()
        there = made is not None and made[0] is not None
        if there and connection.execute("SELECT 1 FROM trades_option_btc LIMIT 1").fetchone():
            return
        time.sleep(0.1)
    raise UnavailableError(f"no row in Postgres after {_FIRST_ROW_S:.0f} s")


def _look(data: Path, first_row_s: float) -> Iterator[Measurement]:
    threading.Event().wait(_SETTLE_S)
    status = control.read_status(data)
    assert status.supervisor is not None, "the demo runs"
    supervisor = psutil.Process(status.supervisor.pid)
    tree = [supervisor, *supervisor.children(recursive=True)]
    rss = sum(process.memory_info().rss for process in tree) / 1e6
    ours = {"supervisor": supervisor, **_ours(status)}
    before = {name: _cpu_s(process) for name, process in ours.items()}
    say(f"demo_start: watching our services for {_IDLE_S:.0f} s")
    began = time.monotonic()
    threading.Event().wait(_IDLE_S)
    seconds = time.monotonic() - began
    idle = {name: (_cpu_s(ours[name]) - cpu) / seconds * 100 for name, cpu in before.items()}
    yield Measurement(
        "demo_start.first_row",
        "s",
        (first_row_s,),
        better="lower",
        floor=_MAX_START_S,
    )
    yield Measurement(
        "demo_start.rss",
        "MB",
        (rss,),
        better="lower",
        floor=_MAX_RSS_MB,
        details={"processes": len(tree), "ours_mb": _rss_mb(ours)},
    )
    yield Measurement(
        "demo_start.idle_cpu",
        "% of a core",
        (sum(idle.values()),),
        better="lower",
        floor=_MAX_IDLE_PERCENT,
        details={"each": {name: round(percent, 2) for name, percent in idle.items()}},
    )


def _ours(status: StackStatus) -> dict[str, psutil.Process]:
    found = {name: status.component(name).process for name in _OURS}
    return {name: psutil.Process(process.pid) for name, process in found.items() if process}


def _rss_mb(processes: dict[str, psutil.Process]) -> dict[str, int]:
    return {name: round(p.memory_info().rss / 1e6) for name, p in processes.items()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
