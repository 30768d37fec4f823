"""One worker process: everything wired, started and ended; an ASGI application to uvicorn.

uvicorn starts and ends it through the lifespan protocol; requests never come this way, they are
served by `protocol` on the connection itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import KStreamError
from kstream_agg.core.logs import configure_logging, get_logger
from kstream_agg.core.telemetry import Telemetry
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.proxy.accepting import Acceptor
from kstream_agg.proxy.access import Access
from kstream_agg.proxy.connections import ConnectionRules, ConnectionState
from kstream_agg.proxy.handler import Handler, HandlerParts, HandlerRules
from kstream_agg.proxy.journal import Journal
from kstream_agg.proxy.limits import Limits, SharedBuckets
from kstream_agg.proxy.openapi import pages
from kstream_agg.proxy.outbox import Outbox
from kstream_agg.proxy.resending import LogPorts
from kstream_agg.proxy.schemas import AvroEncoders
from kstream_agg.proxy.sending import Sender
from kstream_agg.proxy.store import LogStore, orphaned_slots, take_slot
from kstream_agg.proxy.tallies import Snapshot, Tallies
from kstream_agg.proxy.topics import Topics
from kstream_agg.proxy.tracing import Tracing

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kstream_agg.kafka.registry import SchemaRegistry
    from kstream_agg.proxy.settings import ProxySettings

__all__ = ["SERVICE", "WorkerApp"]

SERVICE: Final = "push-proxy"
_log = get_logger(__name__)

_TICK_S: Final = 1.0
_REFRESH_TOPICS_S: Final = 30.0
_FIRST_CONTACT_S: Final = 1.0
_ADOPT_S: Final = 10.0
# Requests leave no cycles: collecting often finds nothing and costs a tenth of the time.
_GC_THRESHOLD: Final = 50_000
_MEBIBYTE: Final = 1 << 20


class WorkerApp:
    """What uvicorn is given; picklable, it is sent to the worker processes.

    Args:
        settings: The proxy's settings.
        runtime: The folder of shared buckets and sockets.
        parent: The process that started the workers; they end when it is gone.
    """

    def __init__(self, settings: ProxySettings, runtime: Path, parent: int) -> None:
        self._settings = settings
        self._runtime = runtime
        self._parent = parent
        self.listener: socket.socket | None = None
        """The listening socket, for the workers to take several connections a turn."""

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve the lifespan protocol (https://asgi.readthedocs.io/en/latest/specs/lifespan.html)."""
        if scope["type"] != "lifespan":
            raise RuntimeError("requests are served by the protocol")
        await receive()
        configure_logging(self._settings.log, SERVICE)
        async with contextlib.AsyncExitStack() as stack:
            try:
                worker = await stack.enter_async_context(
                    Worker(self._settings, self._runtime, self._parent, self.listener)
                )
            except KStreamError as error:
                _log.error("the worker cannot start", error=str(error), remedy=error.remedy)
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            scope["state"]["connections"] = worker.connections
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


class Worker:
    """The parts of one worker; an async context manager from start to clean end."""

    def __init__(
        self,
        settings: ProxySettings,
        runtime: Path,
        parent: int,
        listener: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._parent = parent
        self._acceptor = Acceptor(listener, settings.http.worker_count) if listener else None
        self._tasks: list[asyncio.Task[None]] = []
        self._clock = SystemClock()
        loop = asyncio.get_running_loop()
        self._tallies = Tallies()
        self._telemetry = Telemetry(settings.telemetry, SERVICE)
        self._outbox = Outbox(settings.producer_config(), loop, self._kafka_is_back)
        self._buckets = SharedBuckets(runtime / "buckets")
        self._store = self._open_store()
        self._encoders = AvroEncoders(self._connect_registry)
        self._topics = Topics(
            self._outbox.topics,
            create=self._create_topic if settings.topic.create else None,
            keep=self._keep_topics if self._store is not None else None,
            known=self._store.topics() if self._store is not None else None,
            monotonic=self._clock.monotonic,
        )
        self._sender = Sender(
            self._outbox,
            self._topics,
            self._clock,
            queue_wait_s=settings.http.queue_wait_ms / 1000,
            max_record_bytes=settings.kafka.message_max_bytes,
        )
        self._handler = self._make_handler()
        self._journal = self._make_journal()
        self._sender.journal = self._journal
        self.connections = ConnectionState(
            self._handler,
            pages(with_keys=bool(settings.security.api_keys)),
            self._connection_rules(),
            self._clock.monotonic,
            self._acceptor,
        )
        self._server: asyncio.Server | None = None
        self._reached = False

    async def __aenter__(self) -> Self:
        self._outbox.start()
        self._tick()
        if self._journal is not None:
            self._journal.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch_topics()), loop.create_task(self._ticking())]
        if self._journal is not None:
            self._tasks.append(loop.create_task(self._adopt_orphans()))
        path = self._runtime / f"{os.getpid()}.sock"
        self._server = await asyncio.start_unix_server(self._tell, path=str(path))
        # What is there now stays: the collector need not walk it again with every generation.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Uvicorn has stopped accepting, and the requests are answered or out of time."""
        if self._acceptor is not None:
            self._acceptor.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = await self._outbox.flush(self._settings.http.shutdown_timeout_s, asyncio.sleep)
        kept = 0
        if self._journal is not None:
            kept = await self._journal.close()
        self._outbox.close()
        if left and self._journal is None:
            _log.error("records are lost: Kafka has not confirmed them", records=left)
        elif kept:
            _log.warning("records stay in the log, for the next start", batches=kept)
        if self._server is not None:
            self._server.close()
            (self._runtime / f"{os.getpid()}.sock").unlink(missing_ok=True)
        self._encoders.close()
        self._buckets.close()
        self._telemetry.shutdown()

    # --- wiring ----------------------------------------------------------------------------

    def _make_handler(self) -> Handler:
        settings = self._settings
        telemetry = settings.telemetry
        tracer = self._telemetry.tracer if telemetry.exporter != "none" else None
        parts = HandlerParts(
            sender=self._sender,
            topics=self._topics,
            tallies=self._tallies,
            access=Access(settings.security.api_keys),
            limits=Limits(settings.ratelimit, self._buckets),
            encoders=self._encoders,
            tracing=Tracing(tracer, telemetry.sample_ratio),
            clock=self._clock,
        )
        rules = HandlerRules(
            max_records=settings.http.max_records,
            as_reference=settings.http.status_codes == "reference",
        )
        return Handler(parts, rules)

    def _make_journal(self) -> Journal | None:
        if self._store is None:
            return None
        sender = self._sender
        ports = LogPorts(
            self._store, self._outbox, self._tallies, sender.report, sender.send_logged
        )
        wal = self._settings.wal
        return Journal(ports, max_bytes=self._log_bytes(), interval_s=wal.sync_interval_ms / 1000)

    def _open_store(self) -> LogStore | None:
        wal = self._settings.wal
        return take_slot(wal.directory, self._log_bytes()) if wal.enabled else None

    def _log_bytes(self) -> int:
        return self._settings.wal.max_mbytes * _MEBIBYTE // self._settings.http.worker_count

    def _connection_rules(self) -> ConnectionRules:
        http = self._settings.http
        workers = http.worker_count
        return ConnectionRules(
            max_body_bytes=http.max_body_bytes,
            max_header_bytes=http.max_header_bytes,
            max_connections=max(1, http.max_connections // workers),
            max_buffered_bytes=max(
                http.max_body_bytes, http.queue_memory_mbytes * _MEBIBYTE // workers
            ),
            request_timeout_s=http.request_timeout_s,
            keep_alive_s=http.keep_alive_s,
            cors_origins=http.cors_origins,
        )

    def _connect_registry(self) -> SchemaRegistry:
        from kstream_agg.kafka.registry import SchemaRegistry  # noqa: PLC0415 - see schemas

        return SchemaRegistry(self._settings.registry)

    def _create_topic(self, name: str) -> None:
        cluster = KafkaCluster(self._settings.kafka.client_settings(), SERVICE)
        cluster.create_topics([topic_configuration(name, self._settings.topic)])

    async def _keep_topics(self, topics: dict[str, int]) -> None:
        if self._store is not None:
            await asyncio.to_thread(self._store.keep_topics, topics)

    # --- in the background -----------------------------------------------------------------

    def _kafka_is_back(self) -> None:
        if self._journal is not None:
            self._journal.wake()

    def _tick(self) -> None:
        self.connections.tick(formatdate(self._clock.now_ms() / 1000, usegmt=True))

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._tick()
            if os.getppid() != self._parent:
                _log.error("the parent process is gone")
                os.kill(os.getpid(), signal.SIGTERM)

    async def _watch_topics(self) -> None:
        while True:
            if await self._topics.refresh():
                self._reached = True
                self._outbox.seen()
            await asyncio.sleep(_REFRESH_TOPICS_S if self._reached else _FIRST_CONTACT_S)

    async def _adopt_orphans(self) -> None:
        """Take over the logs of workers that are gone."""
        wal = self._settings.wal
        while True:
            await asyncio.sleep(_ADOPT_S if self._reached else _FIRST_CONTACT_S)
            if self._journal is None or not self._reached:
                continue
            for other in orphaned_slots(wal.directory, self._log_bytes()):
                with other:
                    taken = await self._journal.adopt(other)
                if taken:
                    _log.warning("took over a log", folder=str(other.folder), batches=taken)

    # --- telling ---------------------------------------------------------------------------

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        with contextlib.suppress(ConnectionError):
            writer.write(msgspec.msgpack.encode(self._snapshot()))
            await writer.drain()
            writer.close()

    def _snapshot(self) -> Snapshot:
        statistics = self._outbox.statistics
        journal = self._journal
        gauges = {
            "push_proxy_requests_in_progress": float(self._handler.in_progress),
            "push_proxy_connections": float(len(self.connections.connections)),
            "push_proxy_kafka_away": float(self._outbox.away),
        }
        problems = []
        if journal is not None:
            gauges["push_proxy_wal_bytes"] = float(journal.stored_bytes)
            gauges["push_proxy_wal_backlog_batches"] = float(journal.backlog)
            if journal.broken is not None:
                problems.append(journal.broken)
        return Snapshot(
            pid=os.getpid(),
            topics={
                name: tally.snapshot()
                for name, tally in self._topics.tallies.items()
                if tally.sent or tally.limited
            },
            requests={f"{m} {code}": d for (m, code), d in self._tallies.requests.items()},
            producer=statistics.producer,
            brokers=statistics.brokers,
            producer_topics=statistics.topics,
            gauges=gauges,
            counters=self._tallies.counters,
            problems=problems,
            not_ready=self._not_ready(),
        )

    def _not_ready(self) -> str | None:
        if not self._outbox.away:
            return None
        if self._journal is None:
            return "Kafka"
        return None if self._topics.known else "Kafka: no topic is known yet"
