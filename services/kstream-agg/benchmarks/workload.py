"""Trades to measure with: seeded, full RawTrade records of 300 options.

A 5-minute window of an instrument holds 28 trades on average, about as many as a busy option has.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import KafkaSettings, RegistrySettings, TopicSettings
from kstream_agg.core.telemetry import TRACEPARENT
from kstream_agg.deribit.publisher import SIMULATED
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.playback import TradeLoop
from kstream_agg.deribit.trade_encoder import TradeEncoder
from kstream_agg.deribit.trades import Trade
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.writer import PRODUCER_DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.kafka.writer import Headers
    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = [
    "FRAME_TRADES",
    "PRODUCER_DEFAULTS",
    "cluster_of",
    "copy_topic",
    "encoded",
    "frame_headers",
    "instruments",
    "make_topic",
    "prefill",
    "register",
    "wire_trades",
    "write_recording",
]

FRAME_TRADES: Final = 100
"""Trades that share a receipt and its trace, as they come in one frame of the simulator."""

_EXPIRIES: Final = ("6FEB26", "27FEB26", "27MAR26", "26JUN26", "25SEP26", "25DEC26")
_STRIKES: Final = range(40_000, 140_000, 4_000)
_BASE_TRADES: Final = 50_000
_COPIED_AT_ONCE: Final = 10_000
_MEAN_GAP_MS: Final = 59  # 36 ms from trade to trade, with those that share a millisecond
_RECEIVED_AFTER_MS: Final = 5
_SAMPLED_FRAMES: Final = 20  # one in so many, as telemetry.sample_ratio says by default


def instruments(currency: str) -> tuple[str, ...]:
    """The names of 300 options."""
    return tuple(
        f"{currency}-{expiry}-{strike}-{side}"
        for expiry in _EXPIRIES
        for strike in _STRIKES
        for side in "CP"
    )


def wire_trades(count: int, currency: str = "BTC") -> Iterator[WireTrade]:
    """Trades in the exchange's form: sequences without holes, times that never fall.

    The first ones are generated, the others repeat them with later times and further sequences.
    """
    size = min(count, _BASE_TRADES)
    base = generate_trades(
        seed=7, count=size, instruments=instruments(currency), mean_gap_ms=_MEAN_GAP_MS
    ).trades
    loop = TradeLoop(base)
    span_ms: int = base[-1]["timestamp"] - base[0]["timestamp"] + 1
    later = (
        loop.next_trade(base[index % size]["timestamp"] + index // size * span_ms)
        for index in range(size, count)
    )
    return chain(base, later)


def write_recording(path: Path, count: int, currency: str = "BTC") -> None:
    """A recording for the simulator: a `.jsonl` file, one trade a line."""
    with path.open("wb") as file:
        for trade in wire_trades(count, currency):
            file.write(msgspec.json.encode(trade) + b"\n")


def encoded(trades: Iterable[WireTrade], schema_id: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values as the raw-producer writes them."""
    encoder = TradeEncoder(schema_id)
    for wire in trades:
        trade = msgspec.convert(wire, Trade)
        receipt = encoder.receipt(trade.timestamp + _RECEIVED_AFTER_MS, "stream")
        yield trade.instrument_name.encode(), encoder.encode(trade, receipt)


def frame_headers(frame: int) -> Headers:
    """The headers that the records of one frame share; one frame in twenty is sampled."""
    flags = 1 if frame % _SAMPLED_FRAMES == 0 else 0
    trace = f"00-{frame + 1:032x}-{frame + 1:016x}-{flags:02x}"
    return [(TRACEPARENT, trace.encode()), (SIMULATED, b"true")]


def cluster_of(endpoints: StackEndpoints) -> KafkaCluster:
    """The stack's brokers."""
    return KafkaCluster(KafkaSettings(bootstrap_servers=endpoints.bootstrap_servers), "bench")


def register(endpoints: StackEndpoints, topic: str, schema: dict[str, Any]) -> int:
    """The id of a schema for the values of a topic."""
    with SchemaRegistry(RegistrySettings(url=endpoints.registry_url)) as registry:
        return registry.register_value(topic, schema)


def make_topic(endpoints: StackEndpoints, topic: str) -> None:
    """A topic of the shape that the pipeline gives its raw topics by default."""
    cluster_of(endpoints).create_topics([topic_configuration(topic, TopicSettings())])


def prefill(endpoints: StackEndpoints, topic: str, count: int, currency: str) -> dict[str, int]:
    """Fill a raw topic, as the raw-producer would have.

    Returns:
        The last `trade_seq` of each instrument.
    """
    make_topic(endpoints, topic)
    schema_id = register(endpoints, topic, RAW_TRADE)
    producer = Producer(PRODUCER_DEFAULTS | {"bootstrap.servers": endpoints.bootstrap_servers})
    last: dict[str, int] = {}
    trades = wire_trades(count, currency)
    frame = 0
    while wires := list(islice(trades, FRAME_TRADES)):
        headers = frame_headers(frame)
        frame += 1
        last.update((wire["instrument_name"], wire["trade_seq"]) for wire in wires)
        for key, value in encoded(wires, schema_id):
            _produce(producer, topic, value, key, headers=headers)
    assert producer.flush(60) == 0, "the broker did not take the prefill"
    return last


def copy_topic(endpoints: StackEndpoints, source: str, target: str, count: int) -> None:
    """Give a topic the records of another: the same partitions, keys and headers."""
    where = {"bootstrap.servers": endpoints.bootstrap_servers}
    producer = Producer(PRODUCER_DEFAULTS | where)
    consumer = Consumer(where | {"group.id": "bench-copy", "enable.auto.commit": False})
    numbers = range(TopicSettings().partitions)
    consumer.assign([TopicPartition(source, number, OFFSET_BEGINNING) for number in numbers])
    copied = 0
    while copied < count:
        for message in consumer.consume(_COPIED_AT_ONCE, 1.0):
            assert message.error() is None, message.error()
            _produce(
                producer,
                target,
                message.value(),
                message.key(),
                partition=message.partition(),
                headers=message.headers(),
            )
            copied += 1
    consumer.close()
    assert producer.flush(60) == 0, "the broker did not take the copies"


def _produce(producer: Producer, topic: str, value: Any, key: Any, **more: Any) -> None:  # noqa: ANN401 - handed on as they are
    while True:
        try:
            producer.produce(topic, value, key, **more)
        except BufferError:
            producer.poll(0.1)
        else:
            return
