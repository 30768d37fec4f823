"""The supervisor: one process a data folder that starts, watches and ends the components."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import StackError
from kstream_agg.core.logs import get_logger
from kstream_agg.stack.logfiles import rotate_logs
from kstream_agg.stack.process import ProcessLauncher
from kstream_agg.stack.state import StackStatus, process_id, write_state
from kstream_agg.stack.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from concurrent.futures import Executor
    from types import FrameType

    from kstream_agg.core.clock import Clock
    from kstream_agg.stack.component import Component
    from kstream_agg.stack.layout import Layout
    from kstream_agg.stack.process import Launcher
    from kstream_agg.stack.settings import RestartSettings

__all__ = ["Supervisor", "supervise"]

_log = get_logger(__name__)

# Between two looks: short while something is on its way, longer when all stands.
_TICK_BUSY_S = 0.1
_TICK_CALM_S = 0.5
_ROTATE_EVERY_S = 10.0


class Supervisor:
    """Moves the units on; has no process, signal or file of its own.

    Args:
        components: What is to run.
        launcher: Starts processes.
        executor: Runs what may block.
        clock: The clocks.
        restart: Back-off of components that die.
    """

    def __init__(
        self,
        components: Sequence[Component],
        launcher: Launcher,
        executor: Executor,
        clock: Clock,
        restart: RestartSettings,
    ) -> None:
        self.units = [Unit(c, launcher, executor, clock, restart) for c in components]
        self.stopping = False

    def tick(self, suspended: Collection[str] = ()) -> None:
        """Look at every unit once.

        Args:
            suspended: Names of components that are to stand still.
        """
        if self.stopping:
            self._stop_next_group()
        else:
            for unit in self.units:
                if unit.component.name in suspended:
                    unit.stop()
                else:
                    unit.resume()
        healthy = {unit.component.name for unit in self.units if unit.is_healthy}
        for unit in self.units:
            unit.tick(healthy)

    def stop(self) -> None:
        """End all, group by group; a second call ends them at once."""
        if self.stopping:
            for unit in self.units:
                unit.kill()
        self.stopping = True

    @property
    def is_stopped(self) -> bool:
        """All have ended."""
        return self.stopping and all(unit.state == "stopped" for unit in self.units)

    @property
    def is_calm(self) -> bool:
        """Nothing is on its way."""
        return not self.stopping and all(unit.is_healthy for unit in self.units)

    def _stop_next_group(self) -> None:
        left = [unit for unit in self.units if unit.state != "stopped"]
        group = min((unit.component.stop_group for unit in left), default=0)
        for unit in left:
            if unit.component.stop_group == group:
                unit.stop()


def supervise(
    layout: Layout, profile: str, components: Sequence[Component], restart: RestartSettings
) -> None:
    """Run the components until a signal ends them; call from the main thread.

    Args:
        layout: The data folder.
        profile: What the stack was started as.
        components: What to run.
        restart: Back-off of components that die.

    Raises:
        StackError: Another supervisor has the folder.
    """
    clock = SystemClock()
    asked = _StopRequests()
    with (
        layout.lock.open("a") as lock,
        ThreadPoolExecutor(2 * len(components), thread_name_prefix="ask") as executor,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"a stack already runs on {layout.folder}") from error
        supervisor = Supervisor(components, ProcessLauncher(layout), executor, clock, restart)

        def ask_to_stop(signum: int, frame: FrameType | None) -> None:
            del frame
            _log.info("stopping", signal=signal.Signals(signum).name)
            asked.count += 1
            asked.wake.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask_to_stop)
        _run(supervisor, layout, profile, clock, asked)


class _StopRequests:
    """Signals that wait to be taken notice of: a handler must not touch the units."""

    def __init__(self) -> None:
        self.count = 0
        self.wake = threading.Event()


def _run(
    supervisor: Supervisor, layout: Layout, profile: str, clock: Clock, asked: _StopRequests
) -> None:
    me = process_id(os.getpid())
    started_at = clock.now_ms() / 1000
    written: StackStatus | None = None
    rotated_at = clock.monotonic()
    while True:
        while asked.count:
            asked.count -= 1
            supervisor.stop()
        supervisor.tick(_suspended(layout))
        ended = supervisor.is_stopped
        status = StackStatus(
            profile=profile,
            supervisor=None if ended else me,
            stopping=supervisor.stopping,
            started_at=started_at,
            components=tuple(unit.status() for unit in supervisor.units),
        )
        if status != written and _written(layout, status):
            written = status
        if ended:
            return
        if clock.monotonic() - rotated_at > _ROTATE_EVERY_S:
            with contextlib.suppress(OSError):  # a full disk must not end the stack
                rotate_logs(layout.logs)
            rotated_at = clock.monotonic()
        asked.wake.wait(_TICK_CALM_S if supervisor.is_calm else _TICK_BUSY_S)
        asked.wake.clear()


def _suspended(layout: Layout) -> set[str]:
    try:
        return {path.name for path in layout.suspended.iterdir()}
    except OSError:
        return set()


def _written(layout: Layout, status: StackStatus) -> bool:
    """Write the state; on a full disk it is tried again with the next look."""
    try:
        write_state(layout.state, status)
    except OSError as error:
        _log.warning("state not written", reason=error.strerror)
        return False
    return True
