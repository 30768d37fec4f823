"""The watch over sinks, as a thread or as a process, and the dead letters it writes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import (
    KafkaSettings,
    PostgresSettings,
    RegistrySettings,
    TelemetrySettings,
)
from kstream_agg.core.telemetry import Telemetry
from kstream_agg.kafka.dead_letters import LetterFilter, Selection, read_letters
from kstream_agg.kafka.topic_reader import TopicReader
from kstream_agg.sinks.settings import (
    AggregatorView,
    ConnectSettings,
    ToolSettings,
    WatchPolicy,
    WatchSettings,
)
from kstream_agg.sinks.watch import run_watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.kafka.dead_letters import DeadLetter
    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.verify.testing import SinkBench

BASE_MS = 1_760_000_000_000


def tool_settings(
    stack: StackEndpoints, channels: tuple[str, ...]
) -> tuple[ToolSettings, AggregatorView]:
    common: dict[str, Any] = {
        "channels": channels,
        "kafka": KafkaSettings(bootstrap_servers=stack.bootstrap_servers),
        "registry": RegistrySettings(url=stack.registry_url),
    }
    postgres = PostgresSettings(
        port=stack.postgres_port, password_file=stack.postgres_password_file
    )
    connect = ConnectSettings(url=stack.connect_url)
    return ToolSettings(**common, connect=connect, postgres=postgres), AggregatorView(**common)


@contextlib.contextmanager
def watching(bench: SinkBench, **policy: Any) -> Iterator[ServiceContext]:  # noqa: ANN401 - fields of the policy, checked by it
    """The watch in a thread; gives its health and metrics."""
    common: dict[str, Any] = {"every_s": 0.2, "backoff_initial_s": 0.5} | policy
    settings = WatchSettings(
        **{name: getattr(bench.settings, name) for name in type(bench.settings).model_fields},
        watch=WatchPolicy(**common),
    )
    context = ServiceContext(
        "test",
        SystemClock(),
        Metrics(CollectorRegistry()),
        Health(),
        Telemetry(TelemetrySettings(), "test"),
        threading.Event(),
    )
    failures: list[BaseException] = []

    def run() -> None:
        try:
            run_watch(settings, bench.sinks, context)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield context
    finally:
        context.stop.set()
        thread.join(60)
        context.telemetry.shutdown()
    assert not thread.is_alive()
    assert not failures, failures


def watch_process(
    stack: StackEndpoints, folder: Path, channels: tuple[str, ...]
) -> subprocess.Popen[str]:
    """The watch as its own program; logs come on its standard error as JSON lines."""
    environment = os.environ | {
        **stack.environment,
        "KSTREAM_CONFIG_DIR": str(folder),
        "KSTREAM__CHANNELS": ",".join(channels),
        "KSTREAM__WATCH__EVERY_S": "0.2",
        "KSTREAM__LOG__FORMAT": "json",
        "KSTREAM__TELEMETRY__EXPORTER": "none",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "kstream_agg", "connectors", "watch"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def letters_of(bench: SinkBench, topic: str) -> list[DeadLetter]:
    """The dead letters of the first sink that come from a topic."""
    with TopicReader(bench.settings.kafka, "test") as reader:
        box = Selection(bench.sinks[0].dead_letter_topic)
        return list(read_letters(reader, [box], LetterFilter(origin=topic)))
