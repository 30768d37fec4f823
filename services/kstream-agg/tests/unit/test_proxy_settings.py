"""The push proxy's configuration: the reference's keys, and what a mistake says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from kstream_agg.cli.main import cli
from kstream_agg.core.errors import SettingsError
from kstream_agg.proxy.configuration import load_proxy_settings

if TYPE_CHECKING:
    from pathlib import Path

# The example of the reference's README.
REFERENCE = """
kafka:
  brokers:
    - '127.0.0.1:9092'
  request_required_acks: 1
  queue_buffering_max_ms: 20
  queue_buffering_max_kbytes: 2048 # 2 MiB

http:
  port: 4242
  metrics_port: 8088

output_file: "/dev/stdout"

ratelimit: # ratelimit settings.
  enabled: true # enables or disables ratelimiting.
  rules: # defines list of rules for concrete topics.
    - topic_name: "some_topic_name" # concrete topic name.
      max_requests_per_minute: 42 # maximum requests per minute allowed for concrete topic.
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "proxy.yaml"


def test_the_references_file_is_taken_as_it_is(file: Path) -> None:
    file.write_text(REFERENCE, encoding="utf-8")
    settings = load_proxy_settings(file)
    config = settings.kafka.producer_config(workers=1, memory_mbytes=64)
    assert config["bootstrap.servers"] == "127.0.0.1:9092"
    assert config["request.required.acks"] == 1
    assert settings.kafka.queue_buffering_max_ms == 20
    assert config["queue.buffering.max.kbytes"] == 2048
    assert settings.ratelimit.rules[0].topic_name == "some_topic_name"
    assert settings.ratelimit.rules[0].max_requests_per_minute == 42


@pytest.mark.parametrize("chosen", ["true", "'TRUE'"])
def test_a_producer_may_be_idempotent(file: Path, chosen: str) -> None:
    text = f"kafka: {{brokers: ['127.0.0.1:1'], properties: {{enable.idempotence: {chosen}}}}}"
    file.write_text(text, encoding="utf-8")
    config = load_proxy_settings(file).kafka.producer_config(workers=1, memory_mbytes=64)
    Producer(config | {"log_level": 0})  # which refuses acks and requests in flight of others


def test_defaults_are_the_references(file: Path) -> None:
    file.write_text("kafka: {brokers: ['a:1', 'b:2']}", encoding="utf-8")
    settings = load_proxy_settings(file)
    config = settings.kafka.producer_config(workers=1, memory_mbytes=2048)
    assert config["bootstrap.servers"] == "a:1,b:2"
    expected = {
        "message.max.bytes": 1024 * 1024,
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 1_048_576,
        "retries": 3,
        "message.timeout.ms": 2000,
        "request.timeout.ms": 30_000,
        "request.required.acks": -1,
    }
    assert {name: config[name] for name in expected} == expected
    assert settings.kafka.queue_buffering_max_ms == 10
    assert (settings.http.port, settings.http.metrics_port) == (4242, 8088)
    assert str(settings.output_file) == "/dev/stdout"
    assert (settings.ratelimit.enabled, settings.ratelimit.rules) == (False, ())


@pytest.mark.parametrize(
    ("given", "linger_ms"),
    [
        ("", 1),
        ("queue_buffering_max_ms: 0", 0),
        ("queue_buffering_max_ms: 20", 1),
        ("linger_ms: 20", 10),
        ("linger_ms: 20\n  queue_buffering_max_ms: 50", 20),
    ],
)
def test_records_linger_no_longer_than_both_keys_allow(
    file: Path, given: str, linger_ms: float
) -> None:
    file.write_text(f"kafka:\n  brokers: ['a:1']\n  {given}\n", encoding="utf-8")
    config = load_proxy_settings(file).kafka.producer_config(workers=1, memory_mbytes=64)
    assert config["queue.buffering.max.ms"] == linger_ms


def test_limits_are_shared_by_the_workers_and_bounded_by_memory(file: Path) -> None:
    file.write_text("kafka: {brokers: ['a:1']}", encoding="utf-8")
    config = load_proxy_settings(file).kafka.producer_config(workers=4, memory_mbytes=64)
    assert config["queue.buffering.max.messages"] == 25_000
    assert config["queue.buffering.max.kbytes"] == 16 * 1024


def test_user_and_password_mean_sasl_and_any_property_passes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        "kafka:\n  brokers: [a:1]\n  user: me\n  properties: {socket.keepalive.enable: true}",
        encoding="utf-8",
    )
    monkeypatch.setenv("KSTREAM__KAFKA__PASSWORD", "hunter2")
    monkeypatch.setenv("KSTREAM__KAFKA__RETRIES", "7")
    monkeypatch.setenv("KSTREAM__KAFKA__BROKERS", "c:3, d:4")
    settings = load_proxy_settings(file)
    config = settings.kafka.producer_config(workers=1, memory_mbytes=64)
    assert config["bootstrap.servers"] == "c:3,d:4"
    assert config["security.protocol"] == "SASL_PLAINTEXT"
    assert config["sasl.mechanism"] == "PLAIN"
    assert (config["sasl.username"], config["sasl.password"]) == ("me", "hunter2")
    assert config["socket.keepalive.enable"] is True
    assert config["retries"] == 7
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kafka: {brokrs: [a]}", "kafka.brokrs .*no such setting; did you mean 'kafka.brokers'"),
        ("http: {prot: 1}", "did you mean 'http.port'"),
        ("retelimit: {}", "did you mean 'ratelimit'"),
        (
            "ratelimit: {rules: [{topic: x, max_requests_per_minute: 1}]}",
            "did you mean 'ratelimit.rules.0.topic_name'",
        ),
        ("ratelimit: {clients: {bursts: 1}}", "did you mean 'ratelimit.clients.burst'"),
        ("kafka: {brokers: [a], retries: x}", r"kafka.retries .*valid integer"),
        ("http: {workers: 0}", "http.workers .*'auto' or at least 1"),
        ("http: {port: 70000}", "http.port .*less than 65536"),
        ("http: {tls_key: a}", "tls_certificate and tls_key belong together"),
        ("http: {status_codes: honset}", "'honest' or 'reference'"),
        ("security: {api_keys: [{name: a, hash: geheim}]}", "push-proxy --make-key"),
        ("{}", "kafka.brokers is empty"),
        ("kafka: [", "not valid YAML"),
        ("- a", "does not hold a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place(file: Path, text: str, said: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=said) as caught:
        load_proxy_settings(file)
    assert "proxy.yaml" in str(caught.value)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"proxy.yaml cannot be read"):
        load_proxy_settings(file)


def test_check_config_says_what_librdkafka_refuses(file: Path, tmp_path: Path) -> None:
    wal = f"wal: {{directory: {tmp_path}/wal}}"
    file.write_text(f"kafka: {{brokers: [a:1]}}\n{wal}", encoding="utf-8")
    good = CliRunner().invoke(cli, ["push-proxy", "--config", str(file), "--check-config"])
    assert (good.exit_code, good.output) == (0, "the configuration is good\n")
    file.write_text(f"kafka: {{brokers: [a:1], properties: {{lingr: 1}}}}\n{wal}", encoding="utf-8")
    bad = CliRunner().invoke(cli, ["push-proxy", "--config", str(file), "--check-config"])
    assert isinstance(bad.exception, SettingsError)
    assert "lingr" in str(bad.exception)


def test_a_made_key_is_taken_by_the_settings(file: Path) -> None:
    output = CliRunner().invoke(cli, ["push-proxy", "--make-key", "shop"]).output
    snippet = output.split("\n\n", 1)[1]
    file.write_text(f"kafka: {{brokers: [a:1]}}\n{snippet}", encoding="utf-8")
    (key,) = load_proxy_settings(file).security.api_keys
    assert key.name == "shop"
    assert key.topics == ("*",)
