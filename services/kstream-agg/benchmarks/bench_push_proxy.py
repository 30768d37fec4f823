"""push-proxy: requests/s, latency and memory, beside a bare proxy in the same run.

`wrk` with 256 connections and 4 KiB records, load, proxy and broker on the same cores. The bare
proxy (`peers/bare_proxy.py`, one worker) is the yardstick: what kafka-proxy (kprf) did relative to
such a program on the machine where both were measured is known, so its figure here is the bare
proxy's times that ratio.

Every request answered 200 is looked for in the topic, whose records are counted before and after.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from confluent_kafka import Consumer, TopicPartition

from kstream_agg.core.errors import ContractError, PrerequisiteError, UnavailableError
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration
from kstream_agg.proxy.testing import RunningProxy
from kstream_agg.stack.ports import free_ports
from measurement import Measurement
from processes import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["measure"]

_HERE: Final = Path(__file__).parent
_TOPIC: Final = "bench-push-proxy"
_PARTITIONS: Final = 4
_SECONDS: Final = 10
_WARM_UP_SECONDS: Final = 5
_CONNECTIONS: Final = 256
_SIZE: Final = 4096
_RSS_CEILING_MB: Final = 256
_KAFKA: Final[dict[str, Any]] = {"request_required_acks": 1, "queue_buffering_max_ms": 10}

# kafka-proxy's requests/s and p99 relative to the bare proxy with one worker, where both were
# measured on one machine: 15,400 and 66 ms to 16,000 and 32 ms without waiting, 13,400 and 590 ms
# to 13,100 and 32 ms with.
_KPRF_RATE: Final = {False: 15_400 / 16_000, True: 13_400 / 13_100}
_KPRF_P99: Final = {False: 66 / 32, True: 590 / 32}
# What is asked for, relative to kafka-proxy.
_RATE_FLOOR: Final = {"no_wait": 1.3, "wait": 1.1, "no_wait_logged": 0.8}
_P99_CEILING: Final = 0.6


@dataclass(frozen=True, slots=True)
class _Load:
    """What wrk saw of one pass, and what the proxy used."""

    per_s: float
    p99_ms: float
    cpu_us: float
    rss_mb: float


def measure(endpoints: StackEndpoints, folder: Path, runs: int) -> Iterator[Measurement]:
    """Measure every mode `runs` times, the bare proxy and ours in turns."""
    if shutil.which("wrk") is None:
        raise PrerequisiteError(
            "the push-proxy's benchmark needs wrk", remedy="install it: apt-get install wrk"
        )
    cluster = KafkaCluster(KafkaSettings(bootstrap_servers=endpoints.bootstrap_servers), "bench")
    limits = {"retention.bytes": str(64 << 20), "segment.bytes": str(64 << 20)}
    cluster.create_topics([TopicConfiguration(_TOPIC, _PARTITIONS, config=limits)])
    say("push_proxy: warming up the broker, whose first seconds are its compiler's")
    with _bare(endpoints) as (port, process):
        _pass(endpoints, port, process, wait=False, seconds=_WARM_UP_SECONDS)
    modes = {"no_wait": (False, False), "wait": (True, False), "no_wait_logged": (False, True)}
    for name, (wait, logged) in modes.items():
        bare, ours = [], []
        for run in range(1, runs + 1):
            with _bare(endpoints) as (port, process):
                bare.append(_pass(endpoints, port, process, wait=wait))
            with _ours(endpoints, folder, logged=logged) as proxy:
                process = psutil.Process(proxy.pid)
                ours.append(_pass(endpoints, proxy.port, process, wait=wait))
            say(f"push_proxy {name} {run}/{runs}: ours {ours[-1]}, bare {bare[-1]}")
        yield from _report(name, ours, bare, wait=wait)


def _report(
    name: str, ours: list[_Load], bare: list[_Load], *, wait: bool
) -> Iterator[Measurement]:
    kprf = tuple(found.per_s * _KPRF_RATE[wait] for found in bare)
    rates = tuple(found.per_s for found in ours)
    yield Measurement(
        f"push_proxy.{name}_requests_per_s",
        "requests/s",
        rates,
        kprf,
        floor=round(_RATE_FLOOR[name] * sorted(kprf)[len(kprf) // 2]),
        details={"reference_is": "kafka-proxy, by the bare proxy of this run"},
    )
    yield Measurement(
        f"push_proxy.{name}_p99",
        "ms",
        tuple(found.p99_ms for found in ours),
        tuple(found.p99_ms * _KPRF_P99[wait] for found in bare),
        better="lower",
        floor=round(
            _P99_CEILING * _KPRF_P99[wait] * sorted(f.p99_ms for f in bare)[len(bare) // 2], 1
        ),
        details={"reference_is": "kafka-proxy, by the bare proxy of this run"},
    )
    yield Measurement(
        f"push_proxy.{name}_cpu",
        "us/request",
        tuple(found.cpu_us for found in ours),
        tuple(found.cpu_us for found in bare),
        better="lower",
        details={"reference_is": "the bare proxy of this run"},
    )
    yield Measurement(
        f"push_proxy.{name}_rss_peak",
        "MB",
        tuple(found.rss_mb for found in ours),
        tuple(found.rss_mb for found in bare),
        better="lower",
        floor=_RSS_CEILING_MB,
    )


def _pass(
    endpoints: StackEndpoints,
    port: int,
    process: psutil.Process,
    *,
    wait: bool,
    seconds: int = _SECONDS,
) -> _Load:
    """One run of wrk; every 200 must be in the topic.

    Raises:
        ContractError: Fewer records are there than were answered 200, or requests failed.
    """
    before = _end_offsets(endpoints)
    cpu_s, _rss = _usage(process)
    environment = {
        **os.environ,
        "PUSH_TOPIC": _TOPIC,
        "PUSH_WAIT": "true" if wait else "false",
        "PUSH_SIZE": str(_SIZE),
    }
    wrk = subprocess.Popen(
        [
            *("wrk", "-t2", f"-c{_CONNECTIONS}", f"-d{seconds}s", "--latency"),
            *("-s", str(_HERE / "peers" / "push.lua"), f"http://127.0.0.1:{port}/push"),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    rss_peak = 0.0
    while wrk.poll() is None:
        rss_peak = max(rss_peak, _usage(process)[1])
        time.sleep(0.2)
    assert wrk.stdout is not None
    with wrk.stdout:
        said = json.loads(wrk.stdout.read().splitlines()[-1])
    used = _usage(process)[0] - cpu_s
    _check_arrival(endpoints, before, said)
    return _Load(
        per_s=said["good"] / (said["microseconds"] / 1e6),
        p99_ms=said["p99_us"] / 1000,
        cpu_us=used * 1e6 / said["requests"],
        rss_mb=rss_peak / 1e6,
    )


def _check_arrival(endpoints: StackEndpoints, before: int, said: dict[str, Any]) -> None:
    deadline = time.monotonic() + 30
    while (arrived := _end_offsets(endpoints) - before) < said["good"]:
        if time.monotonic() > deadline:
            raise ContractError(f"{said['good']} were answered 200, {arrived} are in the topic")
        time.sleep(0.2)
    if said["broken"] or said["good"] < said["requests"]:
        say(f"not all went well: {said}")


def _end_offsets(endpoints: StackEndpoints) -> int:
    consumer = Consumer(
        {"bootstrap.servers": endpoints.bootstrap_servers, "group.id": "bench-never-committed"}
    )
    try:
        return sum(
            consumer.get_watermark_offsets(TopicPartition(_TOPIC, number), timeout=30)[1]
            for number in range(_PARTITIONS)
        )
    finally:
        consumer.close()


def _usage(process: psutil.Process) -> tuple[float, float]:
    """CPU seconds and resident bytes of a process and its children."""
    cpu_s, rss = 0.0, 0.0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            cpu_s += times.user + times.system
            rss += each.memory_info().rss
    return cpu_s, rss


@contextlib.contextmanager
def _ours(endpoints: StackEndpoints, folder: Path, *, logged: bool) -> Iterator[RunningProxy]:
    settings: dict[str, dict[str, Any]] = {
        "kafka": _KAFKA,
        "wal": {"enabled": logged},
    }
    with RunningProxy(folder / "push-proxy", endpoints.bootstrap_servers, settings) as proxy:
        yield proxy


@contextlib.contextmanager
def _bare(endpoints: StackEndpoints) -> Iterator[tuple[int, psutil.Process]]:
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "BARE_BOOTSTRAP": endpoints.bootstrap_servers,
        "BARE_PORT": str(port),
    }
    started = subprocess.Popen(
        [sys.executable, "bare_proxy.py"], cwd=_HERE / "peers", env=environment
    )
    try:
        _wait_for(port, started)
        yield port, psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(30)


def _wait_for(port: int, started: subprocess.Popen[bytes]) -> None:
    body = json.dumps({"records": [{"topic": _TOPIC, "data": "x"}], "wait_for_send": True})
    deadline = time.monotonic() + 30
    while started.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("POST", "/push", body)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise UnavailableError("the bare proxy does not answer")
