"""For tests and benchmarks: a market of one's own, the raw-producer on it, what its topic holds."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import polars as pl
from prometheus_client import CollectorRegistry
from websockets.sync.client import connect

from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import KStreamError
from kstream_agg.core.health import Health
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.names import channel_topic
from kstream_agg.core.service import ServiceContext
from kstream_agg.core.settings import KafkaSettings, RegistrySettings, TelemetrySettings
from kstream_agg.core.telemetry import Telemetry
from kstream_agg.deribit.raw_producer import run_raw_producer
from kstream_agg.deribit.settings import ExchangeSettings, HistorySettings, RawProducerSettings
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.kafka.columns import ColumnDecoder
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.topic_reader import TopicPart, TopicReader

if TYPE_CHECKING:
    from types import TracebackType

    from kstream_agg.deribit.simulator import SimulatorThread

__all__ = ["Market", "ProducerThread", "TopicContent", "play_unheard", "wait_for"]

_WAIT_S: Final = 120.0
_COLUMNS: Final[dict[str, type[pl.DataType]]] = {
    "instrument_name": pl.String,
    "trade_seq": pl.Int64,
    "source": pl.String,
}


@dataclass
class TopicContent:
    """Trades of a topic: how often each stands there, and which stand out of order unmarked."""

    trades: Counter[tuple[str, int]] = field(default_factory=Counter)
    unmarked: list[tuple[str, int]] = field(default_factory=list)
    backfilled: int = 0
    highest: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, seq: int, source: str) -> None:
        """Take the next trade in, in topic order."""
        self.trades[name, seq] += 1
        if source == "backfill":
            self.backfilled += 1
        elif seq <= self.highest.get(name, 0):
            self.unmarked.append((name, seq))
        self.highest[name] = max(seq, self.highest.get(name, 0))

    def without_holes(self) -> set[tuple[str, int]]:
        """Every trade up to each instrument's highest."""
        return {
            (name, number)
            for name, highest in self.highest.items()
            for number in range(1, highest + 1)
        }

    def differences(self, expected: set[tuple[str, int]]) -> str:
        """What is wrong, in one line; empty when nothing is."""
        missing = sorted(expected - self.trades.keys())
        foreign = sorted(self.trades.keys() - expected)
        twice = sorted(trade for trade, count in self.trades.items() if count > 1)
        found = {
            "missing": missing, "foreign": foreign, "twice": twice, "unmarked": self.unmarked,
        }  # fmt: skip
        return "; ".join(f"{len(v)} {name}: {v[:5]}" for name, v in found.items() if v)


class Market:
    """A currency that nobody else knows: its channels, instruments and topics.

    Args:
        bootstrap_servers: Of Kafka.
        registry_url: Of the schema registry.
        instruments: How many options it has.
    """

    def __init__(self, bootstrap_servers: str, registry_url: str, instruments: int = 300) -> None:
        self.currency = f"T{uuid.uuid4().hex[:8].upper()}"
        self.channel = f"trades.option.{self.currency}.100ms"
        self.topic = channel_topic(self.channel)
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)
        self.registry = RegistrySettings(url=registry_url)
        self.instruments = [
            f"{self.currency}-27MAR26-{1000 * (number // 2 + 1)}-{'CP'[number % 2]}"
            for number in range(instruments)
        ]

    def settings(
        self,
        url: str,
        *,
        exchange: dict[str, Any] | None = None,
        history: dict[str, Any] | None = None,
        **changes: Any,  # noqa: ANN401 - fields of the settings, checked by them
    ) -> RawProducerSettings:
        """Of a raw-producer on this market, impatient as tests are."""
        quick = {"requests_per_s": 500.0, "compare_every_s": 1.0, "hole_patience_s": 0.1}
        values: dict[str, Any] = {
            "channels": (self.channel,),
            "kafka": self.kafka,
            "registry": self.registry,
            "transactional_id": self.currency,
            "exchange": ExchangeSettings(
                url=url, **{"reconnect_min_s": 0.05, "reconnect_max_s": 0.2, **(exchange or {})}
            ),
            "history": HistorySettings(**{**quick, **(history or {})}),
        }
        return RawProducerSettings(**{**values, **changes})

    def read(self, topic: str | None = None) -> TopicContent:
        """What a raw topic holds, committed records only.

        Args:
            topic: Which; by default the market's.
        """
        content = TopicContent()
        with SchemaRegistry(self.registry) as registry:
            decoder = ColumnDecoder(registry.schema_by_id, _COLUMNS, "instrument_name")
            for keys, values in self._batches(topic or self.topic):
                frame = decoder.decode(values, keys).frame
                for name, seq, source in frame.iter_rows():
                    content.add(name, seq, source)
        return content

    def count(self, topic: str) -> int:
        """How many committed records a topic holds."""
        return sum(len(values) for _, values in self._batches(topic))

    def topics(self) -> set[str]:
        """The market's topics that there are."""
        known = KafkaCluster(self.kafka, "test").topics()
        return {name for name in known if self.currency.lower() in name}

    def remove(self) -> None:
        """Delete the market's topics."""
        KafkaCluster(self.kafka, "test").delete_topics(sorted(self.topics()))

    def _batches(self, topic: str) -> list[tuple[list[bytes | None], list[bytes | None]]]:
        """Keys and values of each partition, in offset order."""
        with TopicReader(self.kafka, "test") as reader:
            spans = reader.spans([topic])
            found: dict[TopicPart, tuple[list[bytes | None], list[bytes | None]]]
            found = {part: ([], []) for part in sorted(spans)}
            for part, messages in reader.batches(spans):
                keys, values = found[part]
                for message in messages:
                    key, value = message.key(), message.value()
                    keys.append(key if isinstance(key, bytes) else None)
                    values.append(value if isinstance(value, bytes) else None)
        return list(found.values())


class ProducerThread:
    """The raw-producer in a thread of this process; a context manager.

    Args:
        settings: Its settings.
    """

    def __init__(self, settings: RawProducerSettings) -> None:
        self.health = Health()
        self.stop = threading.Event()
        self.metrics = Metrics(CollectorRegistry())
        self.failure: KStreamError | None = None
        telemetry = Telemetry(TelemetrySettings(), "raw-producer")
        self._context = ServiceContext(
            "raw-producer", SystemClock(), self.metrics, self.health, telemetry, self.stop
        )
        self._settings = settings
        self._thread = threading.Thread(target=self._run)

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where there is none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(_WAIT_S)
        if self._thread.is_alive():
            raise TimeoutError("the raw-producer does not end")

    def _run(self) -> None:
        try:
            run_raw_producer(self._settings, self._context)
        except KStreamError as error:
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.join()


def play_unheard(simulator: SimulatorThread, market: Market) -> None:
    """Let the whole recording happen while no raw-producer is there."""
    with connect(simulator.websocket_url) as websocket:
        call = {"id": 1, "method": "public/subscribe", "params": {"channels": [market.channel]}}
        websocket.send(json.dumps({"jsonrpc": "2.0", **call}))
        received = 0
        while received < len(simulator.recording.trades):
            message = json.loads(websocket.recv(_WAIT_S))
            received += len(message.get("params", {}).get("data", ()))


def wait_for(condition: Any, what: str, within_s: float = _WAIT_S) -> None:  # noqa: ANN401 - a callable without arguments
    """Return once a condition holds.

    Raises:
        TimeoutError: It does not within the time.
    """
    deadline = time.monotonic() + within_s
    tick = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain: {what}")
        tick.wait(0.1)
