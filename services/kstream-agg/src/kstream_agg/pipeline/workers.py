"""Several processes in one consumer group: what scales Python over CPU cores.

The program is started again for each worker, with the same arguments; a variable tells it that
it is one. Kafka spreads the partitions over them. The first process supervises: it starts a
worker again that dies, passes SIGTERM and SIGINT on, and serves /metrics, /healthz and /readyz of
all, each sample with the label `worker`.

A worker that ends because something is set wrong, or because too many records failed, would do so
again: then all end, with its exit code.

A socket joins the two: the worker tells on it where it serves its health, and sees there when its
supervisor is gone, however that ended; it then stops as on SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import ErrorLimitError, KStreamError, SettingsError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.service import run_service
from kstream_agg.pipeline.worker_health import WorkerHealth, WorkersCollector, merge_into

if TYPE_CHECKING:
    from kstream_agg.core.service import ServiceContext
    from kstream_agg.core.settings import ServiceSettings

__all__ = ["announce_worker", "is_worker", "run_workers"]

_log = get_logger(__name__)

_NUMBER: Final = "KSTREAM_WORKER"
_SOCKET: Final = "KSTREAM_WORKER_SOCKET"
_LOOK_S: Final = 0.5
_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_MOST_S: Final = 30.0
# A worker that ran so long begins with the first back-off again.
_STABLE_S: Final = 60.0
# For what a worker does around finishing its batches: leaving the group, flushing traces.
_STOP_SLACK_S: Final = 5.0
_FINAL_CODES: Final = frozenset({SettingsError.exit_code, ErrorLimitError.exit_code})


def is_worker() -> bool:
    """Whether this process is a worker of another."""
    return _NUMBER in os.environ


def announce_worker(ctx: ServiceContext) -> None:
    """In a worker: tell the supervisor where the health is served, and end when it is gone."""
    number = os.environ.get(_SOCKET)
    if number is None:
        return
    joined = socket.socket(fileno=int(number))
    joined.sendall(f"{ctx.http_port}\n".encode())

    def watch() -> None:
        with joined, contextlib.suppress(OSError):
            joined.recv(1)
        _log.warning("the supervisor is gone, stopping")
        ctx.stop.set()

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


class _Worker:
    """One worker's process; it is started again when it has died."""

    def __init__(self, number: int, clock: SystemClock) -> None:
        self.number = number
        self.health = WorkerHealth(number)
        self._clock = clock
        self._backoff_s = _BACKOFF_FIRST_S
        self._start_at = clock.monotonic()
        self._started = 0.0
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def look(self) -> int | None:
        """Start, or see how it is; an exit code that ends all."""
        now = self._clock.monotonic()
        if self.process is None:
            if now >= self._start_at:
                self._start(now)
            return None
        self._hear()
        code = self.process.poll()
        if code is None:
            return None
        self._forget()
        if code in _FINAL_CODES:
            return code
        if now - self._started >= _STABLE_S:
            self._backoff_s = _BACKOFF_FIRST_S
        self._start_at = now + self._backoff_s
        _log.error("worker ended", worker=self.number, code=code, again_in_s=self._backoff_s)
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_MOST_S)
        return None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)

    def wait(self, within_s: float) -> None:
        """Wait for its end; after `within_s` seconds it is killed."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, within_s))
        except subprocess.TimeoutExpired:
            _log.error("worker does not end, it is killed", worker=self.number)
            self.process.kill()
            self.process.wait()
        self._forget()

    def _start(self, now: float) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            _NUMBER: str(self.number),
            _SOCKET: str(theirs.fileno()),
            "KSTREAM__HTTP__PORT": "0",
        }
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=[theirs.fileno()]
            )
        ours.settimeout(0.0)
        self._socket, self._started = ours, now
        _log.info("worker started", worker=self.number, pid=self.process.pid)

    def _hear(self) -> None:
        """Learn its port, once it has said it."""
        if self._socket is None or self.health.port is not None:
            return
        with contextlib.suppress(BlockingIOError):
            said = self._socket.recv(64)
            if said.strip().isdigit():
                self.health.port = int(said)

    def _forget(self) -> None:
        self.process = None
        self.health.port = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def run_workers(
    count: int, settings: ServiceSettings, name: str, stop_within_s: float = 10.0
) -> None:
    """Run this program `count` times and supervise it until asked to stop.

    Args:
        count: How many workers.
        settings: Where the health of all is served, and how to log.
        name: The service's name.
        stop_within_s: How long the workers may take to finish.

    Raises:
        KStreamError: A worker has ended for a reason that would end it again.
    """
    clock = SystemClock()
    workers = [_Worker(number, clock) for number in range(count)]
    with run_service(name, settings) as ctx:
        merge_into(ctx.metrics.registry, WorkersCollector([w.health for w in workers]))
        for worker in workers:
            ctx.health.add_check(f"worker {worker.number}", worker.health.check)
        code: int | None = None
        try:
            while code is None and not ctx.stop.is_set():
                codes = [worker.look() for worker in workers]
                code = next((found for found in codes if found is not None), None)
                _tell_readiness(ctx, workers)
                ctx.stop.wait(_LOOK_S)
        finally:
            _end(workers, stop_within_s + _STOP_SLACK_S)
        if code is not None:
            failure = KStreamError(f"a worker of {name} ended with code {code}, all are stopped")
            failure.exit_code = code
            raise failure


def _tell_readiness(ctx: ServiceContext, workers: list[_Worker]) -> None:
    waiting = [worker.number for worker in workers if not worker.health.is_ready()]
    if waiting:
        ctx.health.set_not_ready(f"waiting for workers {', '.join(map(str, waiting))}")
    else:
        ctx.health.set_ready()


def _end(workers: list[_Worker], within_s: float) -> None:
    for worker in workers:
        worker.stop()
    deadline = time.monotonic() + within_s
    for worker in workers:
        worker.wait(deadline - time.monotonic())
