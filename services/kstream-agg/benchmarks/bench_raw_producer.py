"""raw-producer: trades/s from the simulator at full speed until acknowledged in Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kstream_agg.core.metrics import RECORDS_DELIVERED
from kstream_agg.core.names import channel_topic
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
_CHANNEL: Final = "trades.option.BTC.100ms"
_BARE_TOPIC: Final = "bench-bare-produce"
_FLOOR: Final = 20_000


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Play a generated recording to the raw-producer, `runs` times."""
    recording = folder / "bench.jsonl"
    write_recording(recording, _TRADES)
    make_topic(endpoints, _BARE_TOPIC)
    passes, bare = [], []
    for run in range(1, runs + 1):
        passes.append(_play(endpoints, folder, recording))
        bare.append(
            reference("bare_produce.py", endpoints.bootstrap_servers, _BARE_TOPIC, recording)
        )
        say(
            f"raw_producer {run}/{runs}: {passes[-1].per_s:,.0f} trades/s, "
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
    )
    yield Measurement(
        "raw_producer.rss_peak",
        "MB",
        tuple(found.rss_peak / 1e6 for found in passes),
        better="lower",
    )


def _play(endpoints: StackEndpoints, folder: Path, recording: Path) -> Pass:
    """One pass; the topic grows from pass to pass, the service's counters begin anew."""
    port = free_ports(1)[0]
    playing = ("--speed", "max", "--keep-timestamps", "--loop", "0", "--no-compression")
    simulator = Service(
        (
            *("deribit-simulator", "--recording", str(recording), "--port", str(port)),
            *("--frame-trades", str(FRAME_TRADES), *playing),
        ),
        endpoints.environment,
        folder,
    )
    source = {
        "CHANNELS": _CHANNEL,
        "EXCHANGE__URL": f"ws://127.0.0.1:{port}/ws/api/v2",
        "EXCHANGE__COMPRESSION": "false",
    }
    producer = Service(("raw-producer",), endpoints.environment, folder, source)
    topic = channel_topic(_CHANNEL)
    with simulator:
        simulator.wait_ready()
        with producer:
            return watch(
                lambda: producer.counter(RECORDS_DELIVERED.name, topic), _TRADES, producer.process
            )
