"""The push proxy's contract, black-box over HTTP against real Kafka."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from asking import ANSWER_S, get, post
from confluent_kafka import Consumer, Message, TopicPartition
from proxies import patient_proxy

from kstream_agg.core.settings import KafkaSettings, RegistrySettings, TopicSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration, topic_configuration
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.proxy.testing import RunningProxy
    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

OK = {"status": "ok", "errors": []}
# The example of the reference's README, with its data made valid JSON, and as it stands there.
MENDED = r'{"records": [{"topic": "SOME_TOPIC", "data": "{\"a\": \"b\"}"}],"wait_for_send": false}'
LITERAL = r'{"records": [{"topic": "SOME_TOPIC", "data": "{"\a"\: "\b"\}"}],"wait_for_send": false}'


@pytest.fixture(scope="module")
def cluster(stack: StackEndpoints) -> KafkaCluster:
    return KafkaCluster(KafkaSettings(bootstrap_servers=stack.bootstrap_servers), "test")


@pytest.fixture(scope="module")
def proxy(
    stack: StackEndpoints, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningProxy]:
    folder = tmp_path_factory.mktemp("proxy")
    settings: dict[str, dict[str, Any]] = {
        "registry": {"url": stack.registry_url},
        "http": {"workers": 2},
    }
    with patient_proxy(folder, stack.bootstrap_servers, settings) as running:
        yield running


@pytest.fixture
def topic(cluster: KafkaCluster, unique: Callable[[str], str]) -> Iterator[str]:
    name = unique("proxy")
    # The topic's own time is kept, so that a record's timestamp can be seen.
    cluster.create_topics([TopicConfiguration(name, partitions=3)])
    yield name
    cluster.delete_topics([name])


@pytest.fixture
def read(stack: StackEndpoints) -> Callable[[str, int], list[Message]]:
    """Reads as many records of a topic as are said to be there, and finds no more."""

    def read_topic(topic: str, count: int) -> list[Message]:
        consumer = Consumer(
            {
                "bootstrap.servers": stack.bootstrap_servers,
                "group.id": "never-committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            parts = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, part, 0) for part in parts])
            ends = [
                consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]
                for p in parts
            ]
            assert sum(ends) == count
            found: list[Message] = []
            while len(found) < count:
                found += consumer.consume(count - len(found), timeout=10)
        finally:
            consumer.close()
        return found

    return read_topic


def push(proxy: RunningProxy, *records: dict[str, Any], wait: bool = True) -> httpx2.Response:
    body = {"records": list(records), "wait_for_send": wait}
    return post(f"{proxy.url}/push", json=body)


def send(proxy: RunningProxy, body: bytes | str) -> httpx2.Response:
    return post(f"{proxy.url}/push", content=body)


def header_list(message: Message) -> list[tuple[str, str | bytes | None]]:
    found = message.headers() or []
    return list(found.items() if isinstance(found, dict) else found)


def headers_of(message: Message) -> dict[str, str | bytes | None]:
    return dict(header_list(message))


def test_a_waiting_push_is_in_kafka_when_it_is_answered(
    proxy: RunningProxy, topic: str, read: Callable[[str, int], list[Message]]
) -> None:
    answer = push(proxy, {"topic": topic, "data": "héllo\n", "key": "k"})
    assert (answer.status_code, answer.json()) == (200, OK)
    (message,) = read(topic, 1)
    assert message.value() == "héllo\n".encode()
    assert message.key() == b"k"


def test_a_push_that_does_not_wait_arrives(
    proxy: RunningProxy, topic: str, read: Callable[[str, int], list[Message]]
) -> None:
    for number in range(20):
        answer = push(proxy, {"topic": topic, "data": str(number)}, wait=False)
        assert (answer.status_code, answer.json()) == (200, OK)
    # Answered means in Kafka or in the log; here Kafka is there.
    push(proxy, {"topic": topic, "data": "last"})
    values = {message.value() for message in read(topic, 21)}
    assert values == {str(number).encode() for number in range(20)} | {b"last"}


def test_records_of_one_request_go_out_together_and_are_answered_in_order(
    proxy: RunningProxy, topic: str, read: Callable[[str, int], list[Message]]
) -> None:
    answer = push(
        proxy,
        {"topic": topic, "data": "one"},
        {"topic": "no-such-topic", "data": "two"},
        {"topic": topic, "data": "three", "partition": 99},
        {"topic": topic, "data": "four", "partition": 2},
    )
    assert answer.status_code == 207
    said = answer.json()
    assert said["status"] == "error"
    assert [entry["status"] for entry in said["errors"]] == ["ok", "error", "error", "ok"]
    assert said["errors"][0] == {"status": "ok", "error": ""}
    assert "no-such-topic" in said["errors"][1]["error"]
    assert "partition 99" in said["errors"][2]["error"]
    messages = read(topic, 2)
    assert {message.value() for message in messages} == {b"one", b"four"}
    assert {message.partition() for message in messages if message.value() == b"four"} == {2}


def test_a_thousand_records_in_one_request_take_no_thousand_round_trips(
    proxy: RunningProxy, topic: str, read: Callable[[str, int], list[Message]]
) -> None:
    before = proxy.metric("kafka_producer_total_requests_count")
    records = [{"topic": topic, "data": str(number), "partition": 0} for number in range(1000)]
    assert push(proxy, *records).status_code == 200
    messages = read(topic, 1000)
    assert [message.value() for message in messages] == [b"%d" % n for n in range(1000)]
    assert proxy.metric("kafka_producer_total_requests_count") - before < 500


def test_every_addition_reaches_the_record(
    proxy: RunningProxy, topic: str, read: Callable[[str, int], list[Message]]
) -> None:
    raw = bytes(range(256))
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    body = {
        "records": [
            {"topic": topic, "data": {"a": [1, 2.50]}, "partition": 0},
            {"topic": topic, "data_base64": base64.b64encode(raw).decode(), "partition": 0},
            {"topic": topic, "data": None, "key": "gone", "partition": 0},
            {
                "topic": topic,
                "data": "x",
                "headers": {"a": "1", "empty": None},
                "timestamp": 1_600_000_000_123,
                "partition": 0,
            },
            {"topic": topic, "data": "y", "headers": [["a", "1"], ["a", "2"]], "partition": 0},
        ],
        "wait_for_send": True,
    }
    answer = post(f"{proxy.url}/push", json=body, headers={"traceparent": parent})
    assert answer.json() == OK
    json_value, binary, tombstone, with_headers, repeated = read(topic, 5)
    assert json_value.value() == b'{"a":[1,2.5]}'
    assert binary.value() == raw
    assert tombstone.value() is None
    assert tombstone.key() == b"gone"
    assert headers_of(with_headers)["a"] == b"1"
    assert headers_of(with_headers)["empty"] is None
    assert with_headers.timestamp()[1] == 1_600_000_000_123
    assert [value for name, value in header_list(repeated) if name == "a"] == [b"1", b"2"]
    for message in (json_value, with_headers, repeated):
        passed_on = headers_of(message)["traceparent"]
        assert isinstance(passed_on, bytes)
        assert passed_on[:36] == parent[:36].encode()
        assert passed_on[36:52] != parent[36:52].encode()


def test_json_data_keeps_the_text_of_the_body(
    proxy: RunningProxy, topic: str, read: Callable[[str, int], list[Message]]
) -> None:
    body = f'{{"records":[{{"topic":"{topic}","data": {{"n" : 1.0e3,"big":12345678901234567890}}}}]'
    assert send(proxy, body + ',"wait_for_send":true}').json() == OK
    (message,) = read(topic, 1)
    assert message.value() == b'{"n" : 1.0e3,"big":12345678901234567890}'


def test_the_references_example_gives_its_answers(proxy: RunningProxy, topic: str) -> None:
    mended = send(proxy, MENDED.replace("SOME_TOPIC", topic))
    assert (mended.status_code, mended.json()) == (200, OK)
    literal = send(proxy, LITERAL)
    assert literal.status_code == 400
    (entry,) = literal.json()["errors"]
    assert entry["status"] == "error"
    assert f"at byte {LITERAL.index(chr(92))}" in entry["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "at byte 1"),
        (b'{"records":[{"topic":"t","data":"\xff"}]}', 400, "not UTF-8: invalid byte at byte 33"),
        (b'{"records":[{"topic":"t","data":"\\ud800"}]}', 400, "half a character, at byte 33"),
        (b'{"records":{}}', 400, "$.records"),
        (b'{"wait_for_send":true}', 400, "records"),
        (b'{"records":[{"data":"x"}]}', 400, "topic"),
        (b'{"records":[{"topic":1,"data":"x"}]}', 400, "$.records[0].topic"),
        (b'{"records":[' + b"[" * 100_000, 400, "nested too deeply"),
        (b'{"records":[{"topic":"t","data":"x"}],"wait_for_send":1}', 400, "wait_for_send"),
        (b'{"records":[{"topic":"no topic","data":"x"}]}', 422, "topic:"),
        (b'{"records":[{"topic":"t"}]}', 422, "data:"),
        (b'{"records":[{"topic":"t","data_base64":"?"}]}', 422, "data_base64:"),
        (b'{"records":[{"topic":"t","data":"x","timestamp":-5}]}', 422, "timestamp:"),
        (b'{"records":[{"topic":"t","data":"x","partition":-5}]}', 422, "partition:"),
        (b'{"records":[{"topic":"no-such-topic","data":"x"}]}', 404, "no-such-topic"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    proxy: RunningProxy, body: bytes, status: int, said: str
) -> None:
    answer = send(proxy, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == "error"
    assert said in answer.json()["errors"][0]["error"]


def test_a_topic_that_is_created_later_is_found(
    proxy: RunningProxy, cluster: KafkaCluster, unique: Callable[[str], str]
) -> None:
    name = unique("proxy-late")
    assert push(proxy, {"topic": name, "data": "x"}).status_code == 404
    assert name not in cluster.topics()
    cluster.create_topics([topic_configuration(name, TopicSettings(partitions=1))])
    proxy.wait_until(
        lambda: push(proxy, {"topic": name, "data": "x"}).status_code == 200, "the new topic"
    )
    cluster.delete_topics([name])


def test_a_record_larger_than_kafka_takes_is_413(proxy: RunningProxy, topic: str) -> None:
    answer = push(proxy, {"topic": topic, "data": "x" * 1_100_000}, {"topic": topic, "data": "y"})
    assert answer.status_code == 207
    assert [entry["status"] for entry in answer.json()["errors"]] == ["error", "ok"]
    assert push(proxy, {"topic": topic, "data": "x" * 1_100_000}).status_code == 413


def test_schema_records_are_encoded_and_bad_ones_named(
    proxy: RunningProxy,
    stack: StackEndpoints,
    topic: str,
    read: Callable[[str, int], list[Message]],
) -> None:
    schema: dict[str, Any] = {
        "type": "record",
        "name": "Reading",
        "fields": [
            {"name": "sensor", "type": "string"},
            {"name": "value", "type": ["null", "double"], "default": None},
        ],
    }
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        number = registry.register_value(topic, schema)
        by_subject: dict[str, Any] = {"topic": topic, "schema_subject": f"{topic}-value"}
        good: list[dict[str, Any]] = [
            by_subject | {"data": {"sensor": "a", "value": 1.5}},
            {"topic": topic, "schema_id": number, "data": {"sensor": "b"}},
        ]
        assert push(proxy, *good).json() == OK
        decoder = RecordDecoder(registry.schema_by_id)
        found = [decoder.decode(message.value()) for message in read(topic, 2)]
    assert sorted(found, key=str) == [
        {"sensor": "a", "value": 1.5},
        {"sensor": "b", "value": None},
    ]
    for data, field in [
        ({"sensor": "a", "value": "much"}, "data.value"),
        ({"value": 1}, "data.sensor"),
        ({"sensor": "a", "price": 1}, "data.price"),
        ("text", "data:"),
    ]:
        answer = push(proxy, by_subject | {"data": data})
        assert answer.status_code == 422
        assert field in answer.json()["errors"][0]["error"]
    unknown = push(proxy, {"topic": topic, "data": {}, "schema_subject": "no-such-subject"})
    assert unknown.status_code == 404
    assert "no-such-subject" in unknown.json()["errors"][0]["error"]


def test_other_paths_and_methods(proxy: RunningProxy) -> None:
    assert get(f"{proxy.url}/nothing").status_code == 404
    wrong = get(f"{proxy.url}/push")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert get(f"{proxy.url}/docs").headers["content-type"].startswith("text/html")
    head = httpx2.head(f"{proxy.url}/openapi.json", timeout=ANSWER_S)
    assert (head.status_code, head.content) == (200, b"")


def test_pipelined_requests_are_answered_in_their_order(proxy: RunningProxy, topic: str) -> None:
    good = json.dumps({"records": [{"topic": topic, "data": "x"}], "wait_for_send": True})
    request = f"POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: {len(good)}\r\n\r\n{good}"
    broken = "POST /push HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        connection.sendall((request + broken + request + "no HTTP at all\r\n\r\n").encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    lines = [part.split(b"\r\n")[0] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert lines == [b"200 OK", b"400 Bad Request", b"200 OK", b"400 Bad Request"]


def test_chunked_bodies_and_expect_continue(proxy: RunningProxy, topic: str) -> None:
    body = json.dumps({"records": [{"topic": topic, "data": "x"}], "wait_for_send": True}).encode()
    head = b"POST /push HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        connection.sendall(head + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(chunks + b"0\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(received.split(b"\r\n\r\n")[1]) == OK


def test_schemathesis_finds_no_failure(
    proxy: RunningProxy, cluster: KafkaCluster, unique: Callable[[str], str], tmp_path: Path
) -> None:
    # Any timestamp is taken by this one; some requests go to it, some to one that is not there.
    name = unique("proxy-fuzzed")
    cluster.create_topics([topic_configuration(name, TopicSettings(partitions=2))])
    document = get(f"{proxy.url}/openapi.json").json()
    for schema in document["components"]["schemas"].values():
        if "topic" in schema.get("properties", {}):
            schema["properties"]["topic"]["enum"] = [name, "no-such-topic"]
        # What fits a schema of the registry, the document cannot say.
        if schema.get("properties", {}).get("schema_id", {}).get("type") == "integer":
            schema["properties"]["schema_id"]["enum"] = [2**31 - 1]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document).replace("SOME_TOPIC", name), encoding="utf-8")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", proxy.url),
            *("--checks", "all", "--max-examples", "200", "--generation-database", "none"),
            *("--no-color", "--seed", "8"),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    assert proxy.metric("kafka_sent_messages", topic=name) > 50
    cluster.delete_topics([name])
