"""What every long-running service does: logs, signals, metrics, health, traces, a clean end."""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kstream_agg.core.clock import Clock, SystemClock
from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.health import Health, HealthServer
from kstream_agg.core.logs import configure_logging, get_logger
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from kstream_agg.core.settings import ServiceSettings

__all__ = ["ServiceContext", "run_service", "until_available"]

_log = get_logger(__name__)

_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What a service's composition root gets to wire."""

    name: str
    clock: Clock
    metrics: Metrics
    health: Health
    telemetry: Telemetry
    stop: threading.Event
    """Set by SIGTERM and SIGINT: finish what is begun and return."""
    http_port: int = 0
    """Where /metrics, /healthz and /readyz are served."""


@contextlib.contextmanager
def run_service(name: str, settings: ServiceSettings) -> Iterator[ServiceContext]:
    """Set up a service around its main function; call from the main thread.

    Args:
        name: The service's token.
        settings: Its settings.

    Yields:
        What the service is wired from. On leaving, traces are flushed and the HTTP server ends.
    """
    configure_logging(settings.log, name)
    stop = threading.Event()

    def ask_to_stop(signum: int, frame: FrameType | None) -> None:
        del frame
        _log.info("stopping", signal=signal.Signals(signum).name)
        stop.set()

    previous = {sig: signal.signal(sig, ask_to_stop) for sig in (signal.SIGTERM, signal.SIGINT)}
    metrics = Metrics()
    health = Health()
    telemetry = Telemetry(settings.telemetry, name)
    try:
        with HealthServer(settings.http, metrics, health) as server:
            _log.info("started", http_port=server.port)
            yield ServiceContext(name, SystemClock(), metrics, health, telemetry, stop, server.port)
    finally:
        telemetry.shutdown()
        for sig, handler in previous.items():
            signal.signal(sig, handler)
        _log.info("stopped")


def until_available(stop: threading.Event, step: Callable[[], object]) -> bool:
    """Repeat a step of a start for as long as what it needs does not answer.

    Args:
        stop: Ends the waiting.
        step: Raises UnavailableError when it is to be repeated; other errors pass through.

    Returns:
        False when asked to stop before it was done.
    """
    while not stop.is_set():
        try:
            step()
        except UnavailableError as error:
            _log.warning("trying again", reason=str(error))
            stop.wait(_AGAIN_S)
        else:
            return True
    return False
