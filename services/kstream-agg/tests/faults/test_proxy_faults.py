"""The push proxy while things around it break: no accepted record is lost, no 5xx undeserved."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import pytest
from asking import ANSWER_S, get, post
from confluent_kafka import Consumer, TopicPartition

from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration
from kstream_agg.proxy.testing import Load, RunningProxy
from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.faults, pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[LocalStack]:
    """A broker that may be killed; its supervisor starts it again."""
    with (
        open_folder("kstream-proxy-faults-") as folder,
        LocalStack(folder, only=("kafka",)) as running,
    ):
        yield running


def make_topic(bootstrap_servers: str, name: str) -> str:
    cluster = KafkaCluster(KafkaSettings(bootstrap_servers=bootstrap_servers), "test")
    cluster.create_topics([TopicConfiguration(name, partitions=2)])
    return name


@pytest.fixture
def topic(stack: StackEndpoints, unique: Callable[[str], str]) -> str:
    return make_topic(stack.bootstrap_servers, unique("proxy-faults"))


def read_names(bootstrap_servers: str, topic: str) -> Counter[str]:
    """What begins the values of a topic, and how often it stands there."""
    config = {"bootstrap.servers": bootstrap_servers, "group.id": "never-committed"}
    consumer = Consumer(config)
    try:
        parts = [TopicPartition(topic, number, 0) for number in range(2)]
        ends = [consumer.get_watermark_offsets(part, timeout=30)[1] for part in parts]
        consumer.assign(parts)
        found: Counter[str] = Counter()
        while found.total() < sum(ends):
            for message in consumer.consume(5000, timeout=30):
                assert message.error() is None
                found[(message.value() or b"").decode().partition(" ")[0] + " "] += 1
    finally:
        consumer.close()
    return found


def drain(proxy: RunningProxy) -> None:
    """Wait until the proxy's log is empty."""
    proxy.wait_until(lambda: proxy.metric("push_proxy_wal_bytes") == 0, "an empty log", 120)


@contextmanager
def ending(proxy: RunningProxy) -> Iterator[None]:
    """Ends a proxy that was started by hand, in order when all went well."""
    try:
        yield
        assert proxy.stop() == 0
    finally:
        proxy.kill()


def kafka_process(own: LocalStack) -> psutil.Process:
    process = own.status().component("kafka").process
    assert process is not None
    return psutil.Process(process.pid)


@pytest.mark.parametrize("wait", [False, True])
def test_kafka_is_killed_under_load(
    own_kafka: LocalStack, unique: Callable[[str], str], tmp_path: Path, *, wait: bool
) -> None:
    servers = own_kafka.endpoints.bootstrap_servers
    topic = make_topic(servers, unique("killed"))
    with RunningProxy(tmp_path, servers, {"http": {"workers": 2}}) as proxy:
        with Load(lambda: proxy.port, topic, wait=wait, size=1000) as load:
            load.wait_for(500)
            kafka_process(own_kafka).send_signal(signal.SIGKILL)
            if not wait:
                load.wait_for(500)  # from the log
            proxy.wait_until(lambda: proxy.metric("push_proxy_kafka_away") == 2, "the loss", 60)
            proxy.wait_until(lambda: proxy.metric("push_proxy_kafka_away") == 0, "Kafka", 120)
            load.wait_for(500)
        drain(proxy)
        assert set(load.statuses) <= ({200} if not wait else {200, 503, 504})
        assert proxy.stop() == 0
    found = read_names(servers, topic)
    assert not load.accepted - set(found)


def test_kafka_hangs_under_load(
    own_kafka: LocalStack, unique: Callable[[str], str], tmp_path: Path
) -> None:
    servers = own_kafka.endpoints.bootstrap_servers
    topic = make_topic(servers, unique("hanging"))
    with RunningProxy(tmp_path, servers) as proxy:
        kafka = kafka_process(own_kafka)
        with (
            Load(lambda: proxy.port, topic) as load,
            Load(lambda: proxy.port, topic, clients=2, wait=True) as waiting,
        ):
            load.wait_for(500)
            kafka.suspend()
            try:
                load.wait_for(500)
                proxy.wait_until(lambda: waiting.statuses[504] > 0, "a 504")
            finally:
                kafka.resume()
            load.wait_for(500)
            waiting.wait_for(50)
        drain(proxy)
        assert set(load.statuses) == {200}
        assert set(waiting.statuses) <= {200, 504, 503}
        found = read_names(servers, topic)
        assert not load.accepted - set(found)


def test_the_proxy_is_killed_ten_times_under_load(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    settings = {"http": {"workers": 2}, "wal": {"sync_interval_ms": 5}}
    proxy = RunningProxy(tmp_path, stack.bootstrap_servers, settings)
    draw = random.Random(7)  # noqa: S311 - chance, not secrets
    with Load(lambda: proxy.port, topic, size=500) as load:
        try:
            for _ in range(10):
                proxy.start()
                load.wait_for(draw.randint(50, 400))
                proxy.kill()
            proxy.start()
        except BaseException:
            proxy.kill()
            raise
    with ending(proxy):
        drain(proxy)
    found = read_names(stack.bootstrap_servers, topic)
    assert not load.accepted - set(found)
    assert set(load.statuses) <= {0, 200}
    repeated = found.total() - len(found)
    assert repeated < len(found)


def test_a_worker_and_the_parent_alone_are_killed(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    proxy = RunningProxy(tmp_path, stack.bootstrap_servers, {"http": {"workers": 2}})
    with Load(lambda: proxy.port, topic) as load:
        proxy.start()
        try:
            load.wait_for(200)
            victim = proxy.workers()[0]
            os.kill(victim, signal.SIGKILL)
            proxy.wait_until(
                lambda: len(proxy.workers()) == 2 and victim not in proxy.workers(), "a new worker"
            )
            load.wait_for(200)
            orphans = [psutil.Process(pid) for pid in proxy.workers()]
            os.kill(proxy.pid, signal.SIGKILL)
            # They see that they are alone, and end in order.
            gone, alive = psutil.wait_procs(orphans, timeout=60)
            assert (len(gone), alive) == (2, [])
            proxy.kill()
            proxy.start()
            load.wait_for(200)
        except BaseException:
            proxy.kill()
            raise
    with ending(proxy):
        drain(proxy)
    assert not load.accepted - set(read_names(stack.bootstrap_servers, topic))


def test_a_full_disk_for_the_log(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    with RunningProxy(tmp_path, stack.bootstrap_servers) as proxy:
        body = {"records": [{"topic": topic, "data": "known "}], "wait_for_send": True}
        assert post(f"{proxy.url}/push", json=body).status_code == 200
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        with RunningProxy(tmp_path, nowhere, file_limit=2 << 20) as proxy:
            with Load(lambda: proxy.port, topic, size=4000) as load:
                proxy.wait_until(lambda: load.statuses[503] > 50, "a full disk")
            assert get(f"{proxy.metrics_url}/healthz").status_code == 503
            assert set(load.statuses) == {200, 503}
            assert load.accepted
    with RunningProxy(tmp_path, stack.bootstrap_servers) as proxy:
        drain(proxy)
    assert not load.accepted - set(read_names(stack.bootstrap_servers, topic))


def test_slow_clients_hold_nobody_up(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    http = {"request_timeout_s": 2}
    head = b"POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    with RunningProxy(tmp_path, stack.bootstrap_servers, {"http": http}) as proxy:
        slow = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(300)]
        try:
            for place, connection in enumerate(slow):
                connection.sendall(head[: 1 + place % len(head)])
            with Load(lambda: proxy.port, topic, clients=2, wait=True) as load:
                load.wait_for(200)
                proxy.wait_until(
                    lambda: proxy.metric("http_requests_duration_count", code="408") == 300,
                    "their end",
                )
                load.wait_for(50)
            assert set(load.statuses) == {200}
        finally:
            for connection in slow:
                connection.close()


def test_ten_thousand_malformed_requests(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    draw = random.Random(8)  # noqa: S311 - chance, not secrets
    good = (
        b'{"records":[{"topic":"%b","data":"x","key":"k"}],"wait_for_send":true}' % topic.encode()
    )
    bodies: list[bytes] = []
    while len(bodies) < 10_000:
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        bodies.append(bytes(damaged[: draw.randint(0, len(damaged))]))
    statuses: Counter[int] = Counter()
    with RunningProxy(tmp_path, stack.bootstrap_servers) as proxy:
        with httpx2.Client(timeout=ANSWER_S) as client:
            for body in bodies[:100]:
                client.post(f"{proxy.url}/push", content=body)
            before = proxy.resident_bytes()
            for body in bodies:
                answer = client.post(f"{proxy.url}/push", content=body)
                statuses[answer.status_code] += 1
                said: dict[str, Any] = answer.json()
                assert said["status"] == ("ok" if answer.status_code == 200 else "error")
                if answer.status_code == 400:
                    assert said["errors"][0]["error"].startswith("the ")
            for _ in range(200):
                with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as raw:
                    raw.sendall(draw.randbytes(200) + b"\r\n\r\n")
                    assert raw.recv(65536).startswith(b"HTTP/1.1 400")
        assert proxy.resident_bytes() - before < 30 << 20
        assert set(statuses) <= {200, 400, 404, 422}
        assert statuses[400] > 8000
        assert "Traceback" not in proxy.output
