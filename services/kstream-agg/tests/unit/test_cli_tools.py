"""The small tools where nothing runs: one sentence, a remedy, an exit code."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from kstream_agg.cli import tools
from kstream_agg.cli.consume import json_line
from kstream_agg.cli.main import main
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.kafka.wire import RecordDecoder, RecordEncoder
from kstream_agg.stack.endpoints import StackEndpoints
from kstream_agg.stack.ports import free_ports
from kstream_agg.verify.reading import Record, TopicPart
from kstream_agg.verify.testing import trade_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Runner:
    """Runs the command in this process, where no stack runs and nothing listens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, **variables: str) -> Done:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)
        self._monkeypatch.setattr(sys, "argv", ["kstream-agg", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = self._capsys.readouterr()
        code = exited.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Runner]:
    kafka, registry, connect, postgres = free_ports(4)
    nowhere = {
        "KSTREAM_STACK_DIR": str(tmp_path),
        "KSTREAM__KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka}",
        "KSTREAM__REGISTRY__URL": f"http://127.0.0.1:{registry}/apis/ccompat/v7",
        "KSTREAM__CONNECT__URL": f"http://127.0.0.1:{connect}",
        "KSTREAM__POSTGRES__PORT": str(postgres),
        "KSTREAM__POSTGRES__PASSWORD": "hush",
    }
    for name, value in nowhere.items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Runner(monkeypatch, capsys)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sql", "SELECT 1"), "error: Postgres at 127.0.0.1:"),
        (("sql",), "error: Postgres at 127.0.0.1:"),
        (("topics",), "error: no Kafka broker answers at 127.0.0.1:"),
        (("consume", "trades-option-btc"), "error: no Kafka broker answers at 127.0.0.1:"),
        (("verify", "--timeout", "0"), "error: Postgres at 127.0.0.1:"),
        (("connectors", "status"), "error: Kafka Connect at http://127.0.0.1:"),
    ],
)
def test_without_a_stack_each_tool_says_how_to_start_one(
    run: Runner, arguments: tuple[str, ...], sentence: str
) -> None:
    done = run(*arguments)
    assert done.code == 1
    assert sentence in done.err
    assert "make run" in done.err
    assert "make demo" in done.err
    assert "Traceback" not in done.err
    assert "hush" not in done.err + done.out


def test_a_wrong_setting_is_named(run: Runner) -> None:
    done = run("sql", "SELECT 1", KSTREAM__POSTGRES__PORT="none")
    assert done.code == 2
    assert "postgres.port (environment variable KSTREAM__POSTGRES__PORT)" in done.err


def test_consume_wants_a_topic(run: Runner) -> None:
    done = run("consume")
    assert done.code == 2
    assert "Missing argument 'TOPIC'" in done.err


def decoder() -> RecordDecoder:
    return RecordDecoder(lambda number: RAW_TRADE if number == 1 else None)


def test_a_record_becomes_a_line_with_its_place_and_times_in_ms() -> None:
    value = RecordEncoder(RAW_TRADE, 1).encode(
        trade_record("Ł-1", 3, 1_760_000_000_123, starbase_match_id=2**53 + 1)
    )
    record = Record(
        TopicPart("t", 2), 9, "Ł-1".encode(), value, [("traceparent", b"00-x"), ("n", None)]
    )
    line = json_line(record, decoder())
    assert line.startswith('{"@": {"topic": "t", "partition": 2, "offset": 9, "key": "Ł-1", ')
    assert '"headers": {"traceparent": "00-x", "n": null}' in line
    assert '"timestamp": 1760000000123' in line
    assert '"starbase_match_id": 9007199254740993' in line
    assert "\n" not in line


def test_an_undecodable_record_keeps_its_bytes_and_says_why() -> None:
    line = json_line(Record(TopicPart("t", 0), 0, None, b"no avro", []), decoder())
    assert '"@value": "bm8gYXZybw=="' in line
    assert '"@error": "the value does not begin with the Avro wire format' in line
    assert '"key": null' in line
    assert json_line(Record(TopicPart("t", 0), 0, None, None, []), decoder()).endswith(
        '"@value": null}'
    )


@pytest.mark.parametrize("named_brokers", [None, "kafka.example:9092"])
def test_a_running_stack_is_taken_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_brokers: str | None
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KSTREAM_")}
    if named_brokers is not None:
        clean["KSTREAM__KAFKA__BOOTSTRAP_SERVERS"] = named_brokers
    monkeypatch.setattr(os, "environ", clean)
    found = StackEndpoints(
        data_dir=tmp_path,
        bootstrap_servers="127.0.0.1:1",
        registry_url="http://127.0.0.1:2",
        connect_url="http://127.0.0.1:3",
        zipkin_url="http://127.0.0.1:4",
        postgres_port=5,
        postgres_password_file=tmp_path / "password",
        channels="trades.future.BTC.100ms",
    )
    monkeypatch.setattr(tools, "find_running", lambda: found)
    monkeypatch.setattr(tools, "configure_logging", lambda *_: None)

    settings, aggregator = tools.open_tools("test")

    taken = named_brokers is None
    assert settings.kafka.bootstrap_servers == (named_brokers or "127.0.0.1:1")
    assert (settings.postgres.port == 5) is taken
    assert (settings.connect.url == "http://127.0.0.1:3") is taken
    assert (aggregator.raw_topics == ("trades-future-btc",)) is taken
