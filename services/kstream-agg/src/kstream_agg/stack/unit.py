"""One component's life: a state machine that is looked at many times a second.

    waiting ─► preparing ─► starting ─► ready ⇄ unhealthy
       ▲           │            │          │        │
       └─ backoff ◄┴────────────┴──────────┴────────┘   it failed or died
    one-shot:  … starting ─► done ⇄ unhealthy       what it has made is looked at
    any ─► stopping ─► stopped

What may block (preparing, asking) runs on the executor; the process is started by the thread that
calls `tick`.
"""

from __future__ import annotations

import signal
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from kstream_agg.core.logs import get_logger
from kstream_agg.stack.state import ComponentStatus

if TYPE_CHECKING:
    from collections.abc import Collection
    from concurrent.futures import Executor, Future

    from kstream_agg.core.clock import Clock
    from kstream_agg.stack.component import Component
    from kstream_agg.stack.process import Handle, Launcher
    from kstream_agg.stack.settings import RestartSettings
    from kstream_agg.stack.state import ComponentState

__all__ = ["Unit"]

_log = get_logger(__name__)

_PROBE_STARTING_S = 0.2
_PROBE_READY_S = 5.0
# After an answer that failed: soon, but no load on one that is struggling.
_PROBE_DOUBT_S = 1.0
# One slow answer on a busy machine is no news.
_FAILURES_TO_UNHEALTHY = 2


class Unit:
    """A component and what became of it.

    Args:
        component: What is to run.
        launcher: Starts its process.
        executor: Runs what may block.
        clock: Wall clock for the status, monotonic clock for waiting.
        restart: How long to back off.
    """

    def __init__(
        self,
        component: Component,
        launcher: Launcher,
        executor: Executor,
        clock: Clock,
        restart: RestartSettings,
    ) -> None:
        self.component = component
        self._launcher = launcher
        self._executor = executor
        self._clock = clock
        self._restart = restart
        self._state: ComponentState = "waiting"
        self._detail = ""
        self._since_ms = clock.now_ms()
        self._handle: Handle | None = None
        self._task: Future[None] | None = None
        self._probe: Future[str | None] | None = None
        self._next_probe = 0.0
        self._failures = 0
        self._failure = ""
        self._initialised = False
        self._restarts = 0
        self._backoff_s = restart.backoff_initial_s
        self._started_at = 0.0
        self._deadline = 0.0
        self._next_start = 0.0

    @property
    def state(self) -> ComponentState:
        """What it does now."""
        return self._state

    @property
    def is_healthy(self) -> bool:
        """Ready, or done: those that depend on it may start."""
        return self._state in ("ready", "done")

    def status(self) -> ComponentStatus:
        """What the state file says of it."""
        wait = self._next_start - self._clock.monotonic()
        next_start = self._clock.now_ms() / 1000 + wait if self._state == "backoff" else None
        return ComponentStatus(
            name=self.component.name,
            state=self._state,
            process=self._handle.identity if self._handle else None,
            restarts=self._restarts,
            detail="; ".join(filter(None, (self._detail, self._history()))),
            since=self._since_ms / 1000,
            next_start=round(next_start, 1) if next_start else None,
            ports=dict(self.component.ports),
            address=self.component.address,
        )

    def _history(self) -> str:
        """Why it failed before, as long as it is not clear whether it will again."""
        is_open = self._state in ("waiting", "preparing", "starting")
        return f"before: {self._failure}" if is_open and self._failure else ""

    def tick(self, healthy: Collection[str]) -> None:
        """Go on as far as can be without waiting.

        Args:
            healthy: Names of the components that are ready or done.
        """
        match self._state:
            case "waiting":
                self._tick_waiting(healthy)
            case "preparing":
                self._tick_preparing()
            case "starting" | "ready" | "unhealthy" | "done":
                self._tick_running()
            case "backoff":
                if self._clock.monotonic() >= self._next_start:
                    self._restarts += 1
                    self._enter("waiting")
            case "stopping":
                self._tick_stopping()
            case "stopped":
                pass

    def stop(self) -> None:
        """Ask it to end; `tick` sees to it that it does."""
        if self._state in ("stopping", "stopped"):
            return
        if self._handle is not None:
            self._handle.send_signal(self.component.stop_signal)
        self._deadline = self._clock.monotonic() + self.component.stop_timeout_s
        self._enter("stopping")
        self._tick_stopping()

    def resume(self) -> None:
        """Start it again after `stop`."""
        if self._state == "stopped":
            self._enter("waiting")

    def kill(self) -> None:
        """End it at once."""
        self.stop()
        self._deadline = self._clock.monotonic()
        self._tick_stopping()

    def _tick_waiting(self, healthy: Collection[str]) -> None:
        missing = [name for name in self.component.depends_on if name not in healthy]
        self._detail = f"for {', '.join(missing)}" if missing else ""
        if not missing:
            self._task = self._executor.submit(self.component.prepare or _nothing)
            self._enter("preparing")

    def _tick_preparing(self) -> None:
        if self._task is None or not self._task.done():
            return
        error = _error_of(self._task)
        self._task = None
        if error is None:
            try:
                self._handle = self._launcher.start(self.component)
            except OSError as failure:
                error = f"cannot be started: {failure.strerror}"
        if error is not None:
            self._fail(error)
            return
        self._started_at = self._next_probe = self._clock.monotonic()
        self._probe = None
        self._enter("starting")

    def _tick_running(self) -> None:
        code = self._handle.poll() if self._handle else None
        if self._handle is not None and code is not None:
            said = self._handle.last_error()
            self._handle = None
            if self.component.probe is None and code == 0:
                self._become_done()
            else:
                self._fail(_explain_exit(code) + (f": {said}" if said else ""))
            return
        if self._task is not None:
            self._tick_initialising()
        elif self._probe is not None:
            if self._probe.done():
                self._take_answer(self._probe)
                self._probe = None
        else:
            ask = self.component.watch if self._handle is None else self.component.probe
            if ask is not None and self._clock.monotonic() >= self._next_probe:
                self._probe = self._executor.submit(ask)

    def _take_answer(self, answer: Future[str | None]) -> None:
        said = _error_of(answer) or answer.result()
        pause = _PROBE_STARTING_S if self._state == "starting" else _PROBE_DOUBT_S
        self._next_probe = self._clock.monotonic() + pause
        if said is not None:
            self._failures += 1
            self._detail = said
            if self.is_healthy and self._failures >= _FAILURES_TO_UNHEALTHY:
                self._enter("unhealthy", said)
            return
        self._failures = 0
        if self._handle is None:
            self._become_done()
        elif self._initialised or self.component.initialise is None:
            self._become_ready()
        else:
            self._task = self._executor.submit(self.component.initialise)

    def _tick_initialising(self) -> None:
        if self._task is None or not self._task.done():
            return
        error = _error_of(self._task)
        self._task = None
        if error is not None:
            self._detail = error
            return
        self._initialised = True
        self._become_ready()

    def _become_ready(self) -> None:
        self._become("ready")

    def _become_done(self) -> None:
        self._become("done")

    def _become(self, state: ComponentState) -> None:
        self._detail = self._failure = ""
        if self._state != state:
            self._enter(state)
        self._next_probe = self._clock.monotonic() + _PROBE_READY_S

    def _fail(self, reason: str) -> None:
        """Back off, longer each time, until it has run for a while."""
        if self._clock.monotonic() - self._started_at >= self._restart.stable_s:
            self._backoff_s = self._restart.backoff_initial_s
        self._next_start = self._clock.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self._restart.backoff_max_s)
        self._failures = 0
        self._failure = reason
        self._enter("backoff", reason)

    def _tick_stopping(self) -> None:
        if self._task is not None and not self._task.done():
            return
        if self._handle is None or self._handle.poll() is not None:
            self._handle = None
            self._enter("stopped", self._detail)
        elif self._clock.monotonic() >= self._deadline:
            self._handle.send_signal(signal.SIGKILL)
            if not self._detail:
                self._detail = f"killed: it did not end in {self.component.stop_timeout_s:g} s"
                _log.warning("killed", component=self.component.name)

    def _enter(self, state: ComponentState, detail: str = "") -> None:
        self._state, self._detail = state, detail
        self._since_ms = self._clock.now_ms()
        _log.info("state", component=self.component.name, state=state, detail=detail or None)


def _nothing() -> None:
    """Some components need no preparation."""


def _error_of(task: Future[None] | Future[str | None]) -> str | None:
    """What went wrong in a task, as a sentence; any exception only delays the component."""
    try:
        error = task.exception()
    except CancelledError:
        return "cancelled"
    return None if error is None else str(error) or type(error).__name__


def _explain_exit(code: int) -> str:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"ended by {names.get(-code, f'signal {-code}')}"
    return f"ended with exit code {code}"
