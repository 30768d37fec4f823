"""The Kafka API beside bare loops of the client library, on one partition of 320-byte records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kstream_agg.kafka import KafkaCluster, TopicConfiguration
from measurement import Measurement
from processes import reference, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_RECORDS: Final = 30_000
_READ: Final = 300_000
_ASKED: Final = {"write": 0.90, "read": 0.85}
# A write lasts a tenth of a second: more of them, or a few pauses of the broker's decide.
_REPEATS: Final = 10


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Write and read by the API and by bare loops in turn; what is asked is a ratio."""
    del folder
    servers, topic = endpoints.bootstrap_servers, "bench-client"
    KafkaCluster(servers, "bench").create_topics([TopicConfiguration(topic)])
    for how, count, repeats in (("write", _RECORDS, runs * _REPEATS), ("read", _READ, runs)):
        found: list[dict[str, Any]] = []
        bare: list[dict[str, Any]] = []
        while len(found) < repeats or (how == "write" and len(found) * 2 * _RECORDS < _READ):
            found.append(reference("client_loops.py", how, servers, topic, count))
            bare.append(reference("client_loops.py", f"bare_{how}", servers, topic, count))
            say(f"client {how}: {_per_s(found[-1]):,.0f}/s, bare {_per_s(bare[-1]):,.0f}/s")
        yield Measurement(
            f"client.{how}_records_per_s",
            "records/s",
            tuple(map(_per_s, found)),
            tuple(map(_per_s, bare)),
            asked_ratio=_ASKED[how],
            details={"records": count},
        )
        yield Measurement(
            f"client.{how}_cpu_s_per_million",
            "CPU-s/million",
            tuple(one["cpu_s"] * 1e6 / one["records"] for one in found),
            tuple(one["cpu_s"] * 1e6 / one["records"] for one in bare),
            better="lower",
            details={"records": count},
        )


def _per_s(one: dict[str, Any]) -> float:
    return float(one["records"] / one["seconds"])
