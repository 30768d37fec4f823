"""raw-producer: trades/s from the simulator at full speed until committed in Kafka, and latency."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kstream_agg.core.metrics import COMMIT_SECONDS, RECORDS_DELIVERED
from kstream_agg.core.names import channel_topic
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.stack.ports import free_ports
from measurement import Measurement
from processes import Pass, Service, reference, say, watch
from workload import FRAME_TRADES, make_topic, write_recording

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_TRADES: Final = 300_000
# A currency that nobody else's topics have: each pass makes its topics and deletes them.
_CURRENCY: Final = "BENCH"
_CHANNEL: Final = f"trades.option.{_CURRENCY}.100ms"
_TOPIC: Final = channel_topic(_CHANNEL)
_BARE_TOPIC: Final = "bench-bare-produce"
_FLOOR: Final = 20_000
_FLOOR_CPU: Final = 40_000
_PACED_PER_S: Final = 1_000
_PACED_TRADES: Final = 30_000
_LATENCY_CEILING_MS: Final = 60


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Play a generated recording to the raw-producer, `runs` times."""
    recording = folder / "bench.jsonl"
    write_recording(recording, _TRADES, _CURRENCY)
    make_topic(endpoints, _BARE_TOPIC)
    passes, bare, latencies = [], [], []
    for run in range(1, runs + 1):
        passes.append(_play(endpoints, folder, recording))
        bare.append(
            reference("bare_produce.py", endpoints.bootstrap_servers, _BARE_TOPIC, recording)
        )
        latencies.append(_latency_p99(endpoints, folder))
        say(
            f"raw_producer {run}/{runs}: {passes[-1].per_s:,.0f} trades/s, "
            f"{passes[-1].records / passes[-1].cpu_s:,.0f} per CPU-s, "
            f"p99 {latencies[-1]:.0f} ms, "
            f"bare loop {bare[-1]['records'] / bare[-1]['seconds']:,.0f}"
        )
    yield Measurement(
        "raw_producer.trades_per_s",
        "trades/s",
        tuple(found.per_s for found in passes),
        tuple(found["records"] / found["seconds"] for found in bare),
        floor=_FLOOR,
        details={"trades": _TRADES, "trades_a_frame": FRAME_TRADES},
    )
    yield Measurement(
        "raw_producer.trades_per_cpu_s",
        "trades/CPU-s",
        tuple(found.records / found.cpu_s for found in passes),
        tuple(found["records"] / found["cpu_s"] for found in bare),
        floor=_FLOOR_CPU,
    )
    yield Measurement(
        "raw_producer.rss_peak",
        "MB",
        tuple(found.rss_peak / 1e6 for found in passes),
        better="lower",
    )
    yield Measurement(
        "raw_producer.latency_p99",
        "ms",
        tuple(latencies),
        better="lower",
        floor=_LATENCY_CEILING_MS,
        details={"trades_per_s": _PACED_PER_S, "from": "socket", "to": "committed"},
    )


def _play(endpoints: StackEndpoints, folder: Path, recording: Path) -> Pass:
    """One pass at full speed, into topics of its own."""
    _remove_topics(endpoints)
    simulator, producer = _services(endpoints, folder, ("--recording", str(recording)))
    with simulator:
        simulator.wait_ready()
        with producer:
            return watch(
                lambda: producer.counter(RECORDS_DELIVERED.name, _TOPIC), _TRADES, producer.process
            )


def _latency_p99(endpoints: StackEndpoints, folder: Path) -> float:
    """Milliseconds within which 99% of the transactions of a paced pass were committed.

    Measured from a transaction's first trade at the socket, which has waited longest.
    """
    _remove_topics(endpoints)
    recording = folder / "paced.jsonl"
    write_recording(recording, 400, _CURRENCY)
    options = ("--recording", str(recording), "--loop", str(_PACED_PER_S))
    simulator, producer = _services(endpoints, folder, options)
    with simulator:
        simulator.wait_ready()
        with producer:
            watch(
                lambda: producer.counter(RECORDS_DELIVERED.name, _TOPIC),
                _PACED_TRADES,
                producer.process,
                exactly=False,
            )
            return producer.quantile(COMMIT_SECONDS.name, 0.99) * 1000


def _services(
    endpoints: StackEndpoints, folder: Path, options: tuple[str, ...]
) -> tuple[Service, Service]:
    port = free_ports(1)[0]
    once = () if "--loop" in options else ("--loop", "0")
    playing = ("--speed", "max", "--keep-timestamps", "--no-compression", *once)
    simulator = Service(
        (
            *("deribit-simulator", *options, "--port", str(port)),
            *("--frame-trades", str(FRAME_TRADES), *playing),
        ),
        endpoints.environment,
        folder,
    )
    source = {
        "CHANNELS": _CHANNEL,
        "TRANSACTIONAL_ID": _CURRENCY,
        "EXCHANGE__URL": f"ws://127.0.0.1:{port}/ws/api/v2",
        "EXCHANGE__COMPRESSION": "false",
    }
    return simulator, Service(("raw-producer",), endpoints.environment, folder, source)


def _remove_topics(endpoints: StackEndpoints) -> None:
    """A raw-producer writes no trade twice: another pass needs another topic."""
    cluster = KafkaCluster(KafkaSettings(bootstrap_servers=endpoints.bootstrap_servers), "bench")
    cluster.delete_topics([name for name in cluster.topics() if name.startswith(_TOPIC)])
    while any(name.startswith(_TOPIC) for name in cluster.topics()):
        time.sleep(0.1)
