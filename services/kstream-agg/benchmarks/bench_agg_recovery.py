"""agg-producer: seconds from SIGKILL to the successor's first result, with 2,000 open windows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import Producer, TopicPartition

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.metrics import RECORDS_CONSUMED
from kstream_agg.core.names import average_topic, channel_topic
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import KafkaSettings, TopicSettings
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.kafka.reader import make_consumer
from kstream_agg.kafka.writer import PRODUCER_DEFAULTS
from measurement import Measurement
from processes import POLL_S, Service, say
from workload import encoded, make_topic, register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from confluent_kafka import Consumer

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_INSTRUMENTS: Final = 2_000
_PERIOD_S: Final = 300
_START_MS: Final = 1_767_225_600_000  # a multiple of the period
_WITHIN_S: Final = 120.0
_MAX_S: Final = 15.0
# As an operator would set it who wants to be quick: the least that brokers allow.
_SESSION: Final = {"KAFKA__PROPERTIES": '{"session.timeout.ms": 6000}'}


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Kill a worker and start another `runs` times."""
    found = []
    for run in range(1, runs + 1):
        found.append(_recover(endpoints, folder, f"REC{run}"))
        say(f"agg_recovery {run}/{runs}: {found[-1]:.1f} s")
    yield Measurement(
        "agg_recovery.first_result",
        "s",
        tuple(found),
        better="lower",
        floor=_MAX_S,
        details={"open_windows": _INSTRUMENTS, "session_timeout_s": 6},
    )


def _recover(endpoints: StackEndpoints, folder: Path, currency: str) -> float:
    channel = f"trades.option.{currency}.100ms"
    topic = channel_topic(channel)
    make_topic(endpoints, topic)
    schema_id = register(endpoints, topic, RAW_TRADE)
    names = [f"{currency}-6FEB26-{40_000 + number}-C" for number in range(_INSTRUMENTS)]
    count = _produce(endpoints, topic, schema_id, names, _START_MS)
    changes = {"CHANNELS": channel, "GROUP_ID": f"bench-{currency}"} | _SESSION
    changes["TELEMETRY__EXPORTER"] = "none"
    with Service(("agg-producer",), endpoints.environment, folder, changes) as service:
        _wait(lambda: service.counter(RECORDS_CONSUMED.name, topic) == count)
        service.process.kill()
        killed = time.monotonic()
    # Of a later window: they close all of the first.
    _produce(endpoints, topic, schema_id, names, _START_MS + 2 * _PERIOD_S * 1000)
    settings = KafkaSettings(bootstrap_servers=endpoints.bootstrap_servers)
    results = make_consumer(settings, f"reads-{currency}", "bench")
    output, partitions = average_topic(topic, _PERIOD_S), range(TopicSettings().partitions)
    results.assign([TopicPartition(output, number, 0) for number in partitions])
    with Service(("agg-producer",), endpoints.environment, folder, changes):
        _wait(lambda: _results(results) > 0)
        seconds = time.monotonic() - killed
    results.close()
    return seconds


def _produce(
    endpoints: StackEndpoints, topic: str, schema_id: int, names: list[str], start_ms: int
) -> int:
    """A trade of each instrument, all of one window; gives how many."""
    producer = Producer(PRODUCER_DEFAULTS | {"bootstrap.servers": endpoints.bootstrap_servers})
    count = 0
    for name in names:
        trades = generate_trades(seed=1, count=1, instruments=[name], start_ms=start_ms).trades
        for key, value in encoded(trades, schema_id):
            producer.produce(topic, value, key)
            count += 1
    assert producer.flush(60) == 0, "the broker did not take the trades"
    return count


def _results(consumer: Consumer) -> int:
    return sum(message.error() is None for message in consumer.consume(10_000, 0.1))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(f"it does not come true in {_WITHIN_S:.0f} s")
        time.sleep(POLL_S)
