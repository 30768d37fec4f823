"""agg-producer: records/s on a topic that is there already, beside others that do the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aggregating import aggregate
from aggregating_peers import KafkaStreams, QuixStreams
from kstream_agg.core.names import channel_topic
from measurement import Measurement
from processes import reference, say
from workload import prefill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints
    from processes import Pass

__all__ = ["measure"]

_TRADES: Final = 2_000_000
_QUIX_TRADES: Final = 200_000
_CURRENCY: Final = "AGG"
_FLOOR: Final = 150_000

Peer = dict[str, Any]


@dataclass(slots=True)
class _Passes:
    """What each program did, a pass an entry."""

    one: list[Pass] = field(default_factory=list)
    two: list[Pass] = field(default_factory=list)
    bare: list[Peer] = field(default_factory=list)
    streams: list[Peer] = field(default_factory=list)
    quix: list[Peer] = field(default_factory=list)

    def tell(self, run: int, runs: int) -> None:
        rates = {
            "one worker": self.one[-1].per_s,
            "two workers": self.two[-1].per_s,
            "bare loop": _per_s(self.bare[-1]),
        }
        if self.streams:
            rates["Kafka Streams"] = _per_s(self.streams[-1])
        if self.quix:
            rates["quix-streams"] = _per_s(self.quix[-1])
        shown = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items())
        say(f"agg_producer {run}/{runs}: {shown}")


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Aggregate one topic `runs` times with each program in turn, as a new group each time."""
    streams, quix = KafkaStreams.prepare(), QuixStreams.prepare()
    channel = f"trades.option.{_CURRENCY}.100ms"
    topic = channel_topic(channel)
    say(f"agg_producer: filling {topic} with {_TRADES:,} trades")
    prefill(endpoints, topic, _TRADES, _CURRENCY)
    passes = _Passes()
    for run in range(1, runs + 1):
        group = f"bench-{run}"
        passes.one.append(aggregate(endpoints, folder, channel, _TRADES, group))
        passes.bare.append(
            reference("bare_consume.py", endpoints.bootstrap_servers, topic, _TRADES)
        )
        if streams is not None:
            name = f"streams-{run}"
            passes.streams.append(streams.run(endpoints, folder, topic, _TRADES, name))
        passes.two.append(aggregate(endpoints, folder, channel, _TRADES, f"{group}-two", 2))
        if quix is not None:
            name = f"quix-{run}"
            passes.quix.append(quix.run(endpoints, folder, topic, _QUIX_TRADES, name))
        passes.tell(run, runs)
    yield from _ours(passes)
    yield from _beside_peers(passes)


def _ours(passes: _Passes) -> Iterator[Measurement]:
    rates = tuple(found.per_s for found in passes.one)
    yield Measurement(
        "agg_producer.records_per_s",
        "records/s",
        rates,
        tuple(map(_per_s, passes.bare)),
        floor=_FLOOR,
        asked_ratio=0.28,
        details={
            "beside": "a bare consume() loop",
            "records": _TRADES,
            "record_bytes": round(passes.bare[0]["bytes"] / _TRADES),
        },
    )
    yield Measurement(
        "agg_producer.cpu_s_per_million",
        "CPU-s/million",
        tuple(found.cpu_s_per_million for found in passes.one),
        tuple(map(_cpu_s_per_million, passes.bare)),
        better="lower",
        details={"beside": "a bare consume() loop"},
    )
    yield Measurement(
        "agg_producer.rss_peak",
        "MB",
        tuple(found.rss_peak / 1e6 for found in passes.one),
        better="lower",
    )
    yield Measurement(
        "agg_producer.two_workers",
        "records/s",
        tuple(found.per_s for found in passes.two),
        rates,
        asked_ratio=1.3,
        details={"beside": "one worker"},
    )


def _beside_peers(passes: _Passes) -> Iterator[Measurement]:
    rates = tuple(found.per_s for found in passes.one)
    if passes.streams:
        beside = {"beside": "Kafka Streams 4.3.1, exactly_once_v2, in-memory store, one thread"}
        warm = [round(found["warm_per_s"]) for found in passes.streams]
        yield Measurement(
            "agg_producer.beside_kafka_streams",
            "records/s",
            rates,
            tuple(map(_per_s, passes.streams)),
            asked_ratio=1.3,
            details=beside | {"kafka_streams_second_half": warm},
        )
        yield Measurement(
            "agg_producer.cpu_beside_kafka_streams",
            "CPU-s/million",
            tuple(found.cpu_s_per_million for found in passes.one),
            tuple(map(_cpu_s_per_million, passes.streams)),
            better="lower",
            asked_ratio=0.6,
            details=dict(beside),
        )
    if passes.quix:
        yield Measurement(
            "agg_producer.beside_quix_streams",
            "records/s",
            rates,
            tuple(map(_per_s, passes.quix)),
            asked_ratio=10.0,
            details={
                "beside": f"quix-streams 3.28.0, exactly once, {_QUIX_TRADES:,} records",
                "cpu_s_per_million": round(_cpu_s_per_million(passes.quix[0]), 1),
            },
        )


def _per_s(found: Peer) -> float:
    rate: float = found["records"] / found["seconds"]
    return rate


def _cpu_s_per_million(found: Peer) -> float:
    cost: float = found["cpu_s"] * 1e6 / found["records"]
    return cost
