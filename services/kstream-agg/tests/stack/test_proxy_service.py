"""The push proxy as a service: limits, keys, TLS, metrics, modes, Kafka away, its end."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from asking import ANSWER_S, get, post
from confluent_kafka import Consumer, TopicPartition
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from proxies import patient_proxy

from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration
from kstream_agg.proxy.access import new_key
from kstream_agg.proxy.statistics import BROKER_METRICS, PRODUCER_METRICS, TOPIC_METRICS
from kstream_agg.proxy.testing import RunningProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

OK = {"status": "ok", "errors": []}
CHECKOUT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def cluster(stack: StackEndpoints) -> KafkaCluster:
    return KafkaCluster(KafkaSettings(bootstrap_servers=stack.bootstrap_servers), "test")


@pytest.fixture
def topic(cluster: KafkaCluster, unique: Callable[[str], str]) -> Iterator[str]:
    name = unique("orders")
    cluster.create_topics([TopicConfiguration(name)])
    yield name
    cluster.delete_topics([name])


def values(stack: StackEndpoints, topic: str, count: int) -> list[bytes]:
    """The first values of a topic with one partition."""
    config = {"bootstrap.servers": stack.bootstrap_servers, "group.id": "never-committed"}
    consumer = Consumer(config)
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: list[bytes] = []
        while len(found) < count:
            found += [m.value() or b"" for m in consumer.consume(count - len(found), timeout=10)]
    finally:
        consumer.close()
    return found


def push(
    proxy: RunningProxy,
    *records: dict[str, Any],
    wait: bool = True,
    headers: dict[str, str] | None = None,
) -> httpx2.Response:
    body = {"records": list(records), "wait_for_send": wait}
    return post(f"{proxy.url}/push", json=body, headers=headers)


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def test_keys_open_their_topics_only(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    (key, digest), (other, other_digest) = new_key(), new_key()
    settings: dict[str, dict[str, Any]] = {
        "security": {
            "api_keys": [
                {"name": "shop", "hash": digest, "topics": ["orders-*"]},
                {"name": "other", "hash": other_digest, "topics": ["elsewhere"]},
            ]
        },
        "ratelimit": {
            "enabled": True,
            "rules": [{"topic_name": topic, "max_requests_per_minute": 6}],
            "clients": {"records_per_second": 1, "burst": 20},
        },
        "http": {"workers": 2, "cors_origins": ["https://shop.example"]},
    }
    record = {"topic": topic, "data": "x"}
    with patient_proxy(tmp_path, stack.bootstrap_servers, settings) as proxy:
        nobody = push(proxy, record)
        assert nobody.status_code == 401
        assert push(proxy, record, headers={"X-API-Key": "wrong"}).status_code == 401
        forbidden = push(proxy, record, headers={"X-API-Key": other})
        assert forbidden.status_code == 403
        # Whether a forbidden topic exists is not told.
        unseen = push(proxy, {"topic": "no-such", "data": "x"}, headers={"X-API-Key": other})
        assert unseen.status_code == 403
        mine = {"Authorization": f"Bearer {key}"}
        first = push(proxy, record, headers=mine)
        assert (first.status_code, first.json()) == (200, OK)
        assert first.headers["ratelimit-policy"] == '"client";q=20;w=20'
        assert re.fullmatch(r'"client";r=1[89];t=[12]', first.headers["ratelimit"])
        # The topic's limit holds over both workers, record by record.
        answer = push(proxy, *[record] * 7, headers=mine)
        assert answer.status_code == 207
        statuses = [entry["status"] for entry in answer.json()["errors"]]
        assert statuses == ["ok"] * 5 + ["error"] * 2
        assert "ratelimit" in answer.json()["errors"][6]["error"]
        limited = push(proxy, record, headers=mine)
        assert limited.status_code == 429
        assert 1 <= int(limited.headers["retry-after"]) <= 10
        # The client's limit takes a request's records all or none.
        greedy = push(proxy, *[record] * 21, headers=mine)
        assert greedy.status_code == 429
        assert "client" in greedy.json()["errors"][0]["error"]
        assert proxy.metric("ratelimit_messages_count", topic=topic) == 3
        assert proxy.metric("push_proxy_client_limited_requests") == 1
        origin = {"Origin": "https://shop.example"}
        asked = httpx2.options(f"{proxy.url}/push", headers=origin, timeout=ANSWER_S)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-origin" not in push(proxy, record).headers
        document = get(f"{proxy.url}/openapi.json").json()
        assert document["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    assert len(values(stack, topic, 6)) == 6


def test_what_is_too_large_or_too_slow_is_told_so(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    http = {
        "max_body_bytes": 10_000,
        "max_header_bytes": 2048,
        "max_records": 10,
        "max_connections": 5,
        "request_timeout_s": 1,
        "keep_alive_s": 1,
    }
    with patient_proxy(tmp_path, stack.bootstrap_servers, {"http": http}) as proxy:

        def talk(*pieces: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
                for piece in pieces:
                    connection.sendall(piece)
                return receive_all(connection)

        head = b"POST /push HTTP/1.1\r\nhost: x\r\n"
        large = b"x" * 10_001
        assert talk(head + b"content-length: 10001\r\n\r\n", large).startswith(b"HTTP/1.1 413")
        chunked = head + b"transfer-encoding: chunked\r\n\r\n2711\r\n" + large
        assert talk(chunked).startswith(b"HTTP/1.1 413")
        many = b"".join(b"x-%d: %b\r\n" % (n, b"y" * 50) for n in range(100))
        assert talk(head + many + b"\r\n").startswith(b"HTTP/1.1 431")
        assert talk(head + b"x: " + b"y" * 3000).startswith(b"HTTP/1.1 431")
        # Slow in the headers, slow in the body: answered and closed.
        assert talk(head).startswith(b"HTTP/1.1 408")
        assert talk(head + b"content-length: 10\r\n\r\n", b"{").startswith(b"HTTP/1.1 408")
        # Idle: closed without a word.
        assert talk() == b""
        assert talk(b"\x16\x03\x01\x02\x00\x01").startswith(b"HTTP/1.1 400")
        upgrade = b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        assert talk(upgrade).startswith(b"HTTP/1.1 400")
        assert talk(b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n").count(b"HTTP/1.1 ") == 1
        assert push(proxy, *[{"topic": topic, "data": "x"}] * 11).status_code == 413
        held = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(5)]
        proxy.wait_until(lambda: proxy.metric("push_proxy_connections") == 5, "five connections")
        refused = push(proxy, {"topic": topic, "data": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        for connection in held:
            connection.close()
        proxy.wait_until(lambda: proxy.metric("push_proxy_connections") == 0, "no connection")
        assert push(proxy, {"topic": topic, "data": "x"}).status_code == 200


def test_the_references_way(
    stack: StackEndpoints, cluster: KafkaCluster, unique: Callable[[str], str], tmp_path: Path
) -> None:
    settings: dict[str, dict[str, Any]] = {
        "http": {"status_codes": "reference"},
        "wal": {"enabled": False},
        "topic": {"create": True, "partitions": 2},
    }
    made = unique("proxy-made")
    with patient_proxy(tmp_path, stack.bootstrap_servers, settings) as proxy:
        assert push(proxy, {"topic": made, "data": "x"}).json() == OK
        assert cluster.topics()[made].partitions == 2
        cluster.delete_topics([made])
        large = {"topic": made, "data": "x" * 1_100_000}
        failed = push(proxy, large)
        assert failed.status_code == 500
        assert failed.json()["status"] == "error"
        unwaited = push(proxy, large, wait=False)
        assert (unwaited.status_code, unwaited.json()) == (200, OK)
        assert post(f"{proxy.url}/push", content=b"{").status_code == 400
        assert proxy.stop() == 0


def test_metrics_have_the_references_names(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    with patient_proxy(tmp_path, stack.bootstrap_servers, {"http": {"workers": 2}}) as proxy:
        for number in range(10):
            assert push(proxy, {"topic": topic, "data": "x"}, wait=number % 2 == 0).is_success
        push(proxy, {"topic": "no-such-topic", "data": "x"})
        # The reference's text: a request that does not wait is `push/sync`.
        unwaited = proxy.metric("http_requests_duration_count", method="push/sync", code="200")
        waited = proxy.metric("http_requests_duration_count", method="push/async", code="200")
        assert (unwaited, waited) == (5, 5)
        missing = proxy.metric("http_requests_duration_count", method="push/async", code="404")
        assert missing == 1
        assert proxy.metric("kafka_sent_messages", topic=topic) == 10
        assert proxy.metric("kafka_message_send_duration_count", topic=topic) == 10
        assert proxy.metric("kafka_internal_queue_size", topic=topic) == 0
        proxy.wait_until(
            lambda: proxy.metric("kafka_producer_total_messages_sent") == 10, "the statistics"
        )
        assert proxy.metric("kafka_producer_broker_state") >= 6
        text = get(f"{proxy.metrics_url}/metrics").text
        assert text.endswith("# EOF\n")
        assert 'kprf_app_metadata{commit_hash="' in text
        for name in [*PRODUCER_METRICS, *BROKER_METRICS, *TOPIC_METRICS]:
            assert re.search(rf"^{name}[ {{]", text, re.MULTILINE), name
        assert len([*PRODUCER_METRICS, *BROKER_METRICS, *TOPIC_METRICS]) == 27
        assert get(f"{proxy.metrics_url}/healthz").status_code == 200


def test_while_kafka_is_away_the_log_accepts_and_nothing_else_does(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    with patient_proxy(tmp_path, stack.bootstrap_servers) as proxy:
        assert push(proxy, {"topic": topic, "data": "before"}).status_code == 200
        assert proxy.stop() == 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        with RunningProxy(tmp_path, nowhere) as proxy:
            waits = push(proxy, {"topic": topic, "data": "never"})
            assert waits.status_code == 503
            assert waits.headers["retry-after"]
            for number in range(50):
                taken = push(proxy, {"topic": topic, "data": f"away {number}"}, wait=False)
                assert (taken.status_code, taken.json()) == (200, OK)
            unknown = push(proxy, {"topic": "never-seen", "data": "x"}, wait=False)
            assert unknown.status_code == 503
            too_large = push(proxy, {"topic": topic, "data": "x" * 1_100_000}, wait=False)
            assert too_large.status_code == 413
            assert proxy.metric("push_proxy_wal_written_records") == 50
            proxy.kill()
        with RunningProxy(
            tmp_path, nowhere, {"wal": {"enabled": False}}, ready=False
        ) as without_log:
            refused = push(without_log, {"topic": topic, "data": "x"}, wait=False)
            assert refused.status_code == 503
            assert get(f"{without_log.metrics_url}/readyz").status_code == 503
    with patient_proxy(tmp_path, stack.bootstrap_servers) as proxy:
        proxy.wait_until(lambda: proxy.metric("push_proxy_wal_resent_records") == 50, "the log")
        proxy.wait_until(lambda: proxy.metric("push_proxy_wal_bytes") == 0, "an empty log")
    expected = [b"before", *(b"away %d" % number for number in range(50))]
    assert values(stack, topic, 51) == expected


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


def test_tls_is_the_servers_own(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    http = {"tls_key": str(key), "tls_certificate": str(certificate)}
    with patient_proxy(tmp_path / "proxy", stack.bootstrap_servers, {"http": http}) as proxy:
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx2.Client(verify=trusting, timeout=ANSWER_S) as client:
            body = {"records": [{"topic": topic, "data": "x"}], "wait_for_send": True}
            assert client.post(f"{proxy.url}/push", json=body).json() == OK
            too_large = client.post(f"{proxy.url}/push", content=b"x" * (17 << 20))
            assert too_large.status_code == 413


def test_its_end_finishes_what_is_in_flight(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    # Kafka confirms after 300 ms of linger: the requests are in flight when the end comes.
    kafka = {"queue_buffering_max_ms": 300, "linger_ms": 300, "message_timeout_ms": 10_000}
    answers: list[int] = []
    with patient_proxy(tmp_path, stack.bootstrap_servers, {"kafka": kafka}) as proxy:
        pushes = [
            threading.Thread(
                target=lambda: answers.append(
                    push(proxy, {"topic": topic, "data": "x"}).status_code
                )
            )
            for _ in range(5)
        ]
        for thread in pushes:
            thread.start()
        proxy.wait_until(
            lambda: proxy.metric("push_proxy_requests_in_progress") > 0, "requests in flight"
        )
        assert proxy.stop() == 0
        for thread in pushes:
            thread.join()
    taken = answers.count(200)
    assert taken >= 1
    assert len(values(stack, topic, taken)) == taken


def test_a_taken_port_is_said_in_a_sentence(stack: StackEndpoints, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config = tmp_path / "proxy.yaml"
        config.write_text(
            f"kafka: {{brokers: ['{stack.bootstrap_servers}']}}\n"
            f"http: {{port: {port}, metrics_port: 0}}\nwal: {{enabled: false}}\n"
        )
        ended = subprocess.run(
            [sys.executable, "-m", "kstream_agg", "push-proxy", "--config", str(config)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_lines_from_standard_input_become_records(
    stack: StackEndpoints, topic: str, tmp_path: Path
) -> None:
    with patient_proxy(tmp_path, stack.bootstrap_servers) as proxy:
        command = [sys.executable, "-m", "kstream_agg", "push", topic, "--url", proxy.url]
        done = subprocess.run(
            [*command, "--batch", "7", "--key-separator", "\t"],
            input="".join(f"k\tline {number}\n" for number in range(30)),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, f"30 records pushed to {topic}\n")
        refused = subprocess.run(
            [*command[:-3], "no-such-topic", *command[-2:]],
            input="a\nb\n", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert refused.returncode == 1
        assert "line 1 is refused (404)" in refused.stderr
    assert values(stack, topic, 30) == [b"line %d" % number for number in range(30)]


def test_the_traces_go_on(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    trace = uuid.uuid4().hex
    telemetry = {"exporter": "zipkin", "endpoint": f"{stack.zipkin_url}/api/v2/spans"}
    with patient_proxy(tmp_path, stack.bootstrap_servers, {"telemetry": telemetry}) as proxy:
        answer = push(
            proxy,
            {"topic": topic, "data": "x"},
            headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
        )
        assert answer.status_code == 200

        def spans() -> list[dict[str, Any]]:
            found = get(f"{stack.zipkin_url}/api/v2/trace/{trace}")
            return json.loads(found.content) if found.is_success else []

        proxy.wait_until(lambda: bool(spans()), "the span in Zipkin")
    (span,) = spans()
    assert span["name"] == "produce_to_kafka"
    assert span["parentId"] == "00f067aa0ba902b7"
    assert span["localEndpoint"]["serviceName"] == "push-proxy"
    assert span["tags"]["messaging.destination.name"] == topic


def test_the_readmes_lines_work(stack: StackEndpoints, topic: str, tmp_path: Path) -> None:
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    section = readme.partition("## HTTP in, Kafka out\n")[2].partition("\n## ")[0]
    start, lines = re.findall(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert start == ".venv/bin/kstream-agg push-proxy\n"
    with patient_proxy(tmp_path, stack.bootstrap_servers) as proxy:
        port = str(proxy.port)
        program = f"{sys.executable} -m kstream_agg"
        script = lines.replace("4242", port).replace("SOME_TOPIC", topic)
        script = script.replace(".venv/bin/kstream-agg", program)
        done = subprocess.run(
            ["/bin/sh", "-ec", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "KSTREAM_PUSH_URL": proxy.url},
        )
    assert done.stdout == json.dumps(OK, separators=(",", ":")) * 2
    assert "2 records pushed" in done.stderr
    # The second was not waited for: it may come last.
    expected = [b'{"a": "b"}', b'{"a": "b"}', b"one", b"two"]
    assert sorted(values(stack, topic, 4)) == sorted(expected)
