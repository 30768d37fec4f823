"""The agg-producer's windows and averages as a quix-streams user would write them.

Exactly once, state with its changelog, one result a window when it closes. It does less than the
agg-producer: each window's EWMA begins anew, repeats are counted, and closed windows take no late
trades. It runs in an environment of its own, which has quix-streams and not this package.

`python quix_averages.py BOOTSTRAP REGISTRY_URL TOPIC OUTPUT TOTAL GROUP STATE_DIR AVERAGE.avsc`
prints records, seconds and CPU-seconds behind the first one to the last.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]  # not in our environment
from quixstreams.models import SchemaRegistryClientConfig  # type: ignore[import-not-found]  # not in our environment
from quixstreams.models.serializers.avro import AvroDeserializer, AvroSerializer  # type: ignore[import-not-found]  # not in our environment

_PERIOD_MS = 300_000
_LATENESS_MS = 2_000
_ALPHA = 2 / 301


def _first(trade: dict[str, Any]) -> dict[str, Any]:
    price, amount, seq = trade["price"], trade["amount"], trade["trade_seq"]
    return {
        "instrument_name": trade["instrument_name"],
        "count": 1,
        "sum_price": price,
        "sum_amount": amount,
        "sum_product": price * amount,
        "low": price,
        "high": price,
        "first_seq": seq,
        "last_seq": seq,
        "open": price,
        "close": price,
        "seed": price,
        "current": price,
    }


def _add(sums: dict[str, Any], trade: dict[str, Any]) -> dict[str, Any]:
    price, amount, seq = trade["price"], trade["amount"], trade["trade_seq"]
    sums["count"] += 1
    sums["sum_price"] += price
    sums["sum_amount"] += amount
    sums["sum_product"] += price * amount
    sums["low"] = min(sums["low"], price)
    sums["high"] = max(sums["high"], price)
    if seq < sums["first_seq"]:
        sums["first_seq"], sums["open"] = seq, price
    if seq > sums["last_seq"]:
        sums["last_seq"], sums["close"] = seq, price
    sums["current"] += _ALPHA * (price - sums["current"])
    return sums


def _average(window: dict[str, Any]) -> dict[str, Any]:
    sums = window["value"]
    amount = sums["sum_amount"]
    return {
        "instrument_name": sums["instrument_name"],
        "window_start": window["start"],
        "window_end": window["end"],
        "period": _PERIOD_MS // 1000,
        "alpha": _ALPHA,
        "seed": sums["seed"],
        "current": sums["current"],
        "sma": sums["sum_price"] / sums["count"],
        "vwap": sums["sum_product"] / amount if amount else None,
        "open": sums["open"],
        "high": sums["high"],
        "low": sums["low"],
        "close": sums["close"],
        "trade_count": sums["count"],
        "volume": amount,
        "first_trade_seq": sums["first_seq"],
        "last_trade_seq": sums["last_seq"],
        "revision": 0,
        "closed_by": "watermark",
    }


class _Clock:
    """When the first record had been processed, and the last; it ends the program then."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen = 0
        self.began = self.ended = self.cpu_began = self.cpu_ended = 0.0
        self.app: Application | None = None

    def tick(self, _topic: str, _partition: int, _offset: int) -> None:
        self.seen += 1
        if self.seen == 1:
            self.began, self.cpu_began = time.perf_counter(), time.process_time()
        elif self.seen == self.total and self.app is not None:
            self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
            self.app.stop()


def main(arguments: list[str]) -> None:
    """Aggregate the first `total` records of the topic."""
    bootstrap, registry, topic, output, total, group, state_dir, schema = arguments
    clock = _Clock(int(total))
    app = Application(
        broker_address=bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=1.0,  # as the agg-producer
        state_dir=state_dir,
        # Its fetcher sleeps at the default; the agg-producer and the bare loop have it too.
        consumer_extra_config={"fetch.queue.backoff.ms": 10},
        on_message_processed=clock.tick,
        loglevel="ERROR",
    )
    clock.app = app
    config = SchemaRegistryClientConfig(url=registry)
    averages = AvroSerializer(
        schema=json.loads(Path(schema).read_text(encoding="utf-8")),
        schema_registry_client_config=config,
    )
    raw = app.topic(
        topic,
        key_deserializer="str",
        value_deserializer=AvroDeserializer(schema_registry_client_config=config),
        timestamp_extractor=lambda value, *_: round(value["timestamp"].timestamp() * 1000),
    )
    results = app.topic(output, key_serializer="str", value_serializer=averages)
    frame = app.dataframe(raw)
    frame = frame.tumbling_window(_PERIOD_MS, grace_ms=_LATENESS_MS).reduce(_add, _first).final()
    frame = frame.apply(_average)
    frame.to_topic(
        results, key=lambda average: f"{average['instrument_name']}|{average['window_start']}"
    )
    app.run()
    seconds, cpu_s = clock.ended - clock.began, clock.cpu_ended - clock.cpu_began
    print(json.dumps({"records": clock.total - 1, "seconds": seconds, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main(sys.argv[1:])
