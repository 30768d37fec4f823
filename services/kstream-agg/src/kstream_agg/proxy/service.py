"""The parent process: checks, binds, starts the workers, serves metrics and health."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uvicorn import Config
from uvicorn.supervisors import Multiprocess

from kstream_agg.core.errors import PrerequisiteError, SettingsError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import HttpSettings, ServiceSettings, TelemetrySettings
from kstream_agg.proxy.figures import ProxyCollector, ask_workers
from kstream_agg.proxy.limits import SharedBuckets
from kstream_agg.proxy.protocol import PushProtocol
from kstream_agg.proxy.store import take_slot
from kstream_agg.proxy.worker import SERVICE, WorkerApp

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from kstream_agg.core.health import Health
    from kstream_agg.core.service import ServiceContext
    from kstream_agg.proxy.settings import ProxySettings
    from kstream_agg.proxy.tallies import Snapshot

__all__ = ["check", "run_push_proxy"]

_log = get_logger(__name__)

_COMMIT_VARIABLE: Final = "KSTREAM_COMMIT"
_WATCH_S: Final = 1.0
_HEALTHCHECK_S: Final = 30
_BACKLOG: Final = 2048


def check(settings: ProxySettings) -> None:
    """Check what reading the settings alone cannot: librdkafka's properties, files, folders.

    Raises:
        KStreamError: Something does not fit; the message says what.
    """
    from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - the parent stays small

    try:
        Producer(settings.producer_config() | {"log_level": 0})
    except KafkaException as error:
        raise SettingsError(
            f"kafka: librdkafka refuses the settings: {error.args[0].str()}"
        ) from error
    for path in (settings.http.tls_certificate, settings.http.tls_key):
        if path is not None and not os.access(path, os.R_OK):
            raise SettingsError(f"http: the TLS file '{path}' cannot be read")
    if settings.wal.enabled:
        take_slot(settings.wal.directory, 1 << 20).close()


def run_push_proxy(settings: ProxySettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        KStreamError: It cannot start; the message says why.
    """
    _redirect_output(settings.output_file)
    check(settings)
    http = settings.http
    shared = ServiceSettings.model_construct(
        http=HttpSettings(host=http.metrics_host, port=http.metrics_port),
        log=settings.log,
        telemetry=TelemetrySettings(),  # the workers make the spans
    )
    with _runtime_folder() as runtime, run_service(SERVICE, shared) as context:
        SharedBuckets.create(runtime / "buckets")
        app = WorkerApp(settings, runtime, os.getpid())
        config = _config(settings, app)
        app.listener = listener = _bind(config)
        _log.info(
            "listening",
            host=http.host,
            port=listener.getsockname()[1],
            workers=http.worker_count,
            status_codes=http.status_codes,
            wal=str(settings.wal.directory) if settings.wal.enabled else "off",
        )
        _show(context, runtime)
        supervisor = Multiprocess(config, [listener])
        watcher = threading.Thread(
            target=_watch,
            args=(context.health, runtime, http.worker_count, supervisor.should_exit),
            daemon=True,
        )
        watcher.start()
        supervisor.run()
        watcher.join()
        if any(process.exitcode not in (0, -15) for process in supervisor.processes):
            raise UnavailableError("a worker ended with an error; its log lines say which")


def _config(settings: ProxySettings, app: WorkerApp) -> Config:
    http = settings.http
    return Config(
        app,
        host=http.host,
        port=http.port,
        loop="uvloop",
        http=PushProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        workers=http.worker_count,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=http.shutdown_timeout_s,
        timeout_worker_healthcheck=_HEALTHCHECK_S,
        ssl_certfile=http.tls_certificate,
        ssl_keyfile=http.tls_key,
        ssl_keyfile_password=settings.tls_key_password(),
    )


def _bind(config: Config) -> socket.socket:
    try:
        listener = config.bind_socket()
        listener.listen(_BACKLOG)  # who comes before the workers are up waits for them
    except (SystemExit, OSError) as error:  # the first is uvicorn's way to say so
        raise UnavailableError(
            f"cannot listen on {config.host}:{config.port}: the port is taken or not allowed",
            remedy="end the program that holds it, or set http.port",
        ) from error
    return listener


def _show(context: ServiceContext, runtime: Path) -> None:
    def problems() -> str | None:
        snapshots, silent = ask_workers(runtime)
        said = [*silent, *(text for snapshot in snapshots for text in snapshot.problems)]
        return "; ".join(said) or None

    def snapshots() -> list[Snapshot]:
        return ask_workers(runtime)[0]

    context.health.add_check("workers", problems)
    context.metrics.registry.register(
        ProxyCollector(
            snapshots, metadata.version("kstream-agg"), os.environ.get(_COMMIT_VARIABLE, "unknown")
        )
    )


def _watch(health: Health, runtime: Path, workers: int, stop: threading.Event) -> None:
    """Ready is what all workers are: a connection goes to any of them."""
    complete = False
    while not stop.wait(_WATCH_S):
        snapshots, _silent = ask_workers(runtime)
        waits = [snapshot.not_ready for snapshot in snapshots if snapshot.not_ready]
        # For one that has ended and is started again, the others are heard meanwhile.
        complete = complete or len(snapshots) >= workers
        if complete and snapshots and not waits:
            health.set_ready()
        else:
            health.set_not_ready(waits[0] if waits else "starting")


@contextmanager
def _runtime_folder() -> Iterator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix="push-proxy-"))
    except OSError as error:
        raise PrerequisiteError(f"no temporary folder can be made: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _redirect_output(path: Path) -> None:
    """Let logs go where `output_file` says; the workers inherit it."""
    if path == Path("/dev/stderr"):
        return
    try:
        target = (
            1
            if path == Path("/dev/stdout")
            else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        )
    except OSError as error:
        raise SettingsError(f"output_file '{path}' cannot be written: {error.strerror}") from error
    os.dup2(target, 2)
