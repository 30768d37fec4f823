"""A whole recorded session: exchange → Kafka → averages → Postgres, every trade exactly once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from recordings import write_csv_gz

from kstream_agg.core.settings import PostgresSettings, RegistrySettings
from kstream_agg.deribit.recording import read_recording
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.sinks.postgres import connect
from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.deribit.recording import Recording
    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

TOPIC = "trades-option-btc"
TRADES = 60_456
PERIOD_MS = 300_000


def shared_recording() -> Path | None:
    """The large recording beside the checkout, which may not be shipped with it."""
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "data" / "option_trades_btc_2019.csv.gz"
        if found.is_file():
            return found
    return None


def generated_recording(folder: Path) -> Path:
    """As many seeded trades, written as a recorder would."""
    names = [f"BTC-27MAR26-{strike}-C" for strike in range(50_000, 130_000, 400)]
    trades = generate_trades(seed=7, count=TRADES, instruments=names).trades
    return write_csv_gz(folder / "generated.csv.gz", trades)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder("kstream-e2e-") as folder:
        yield folder


@pytest.fixture(scope="module")
def recording_path(folder: Path) -> Path:
    return shared_recording() or generated_recording(folder)


@pytest.fixture(scope="module")
def recording(recording_path: Path) -> Recording:
    return read_recording(recording_path)


@pytest.fixture(scope="module")
def stack(folder: Path, recording_path: Path) -> Iterator[StackEndpoints]:
    """The demo's pipeline, playing the recording once with its own timestamps."""
    options = {
        "recording": str(recording_path),
        "loop": "0",
        "speed": "max",
        "channels": "trades.option.BTC.100ms",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSTREAM__SIMULATOR__SHIFT_TO_NOW", "false")
        patch.setenv("KSTREAM__WINDOW__IDLE_TIMEOUT", "1")
        with LocalStack(folder / "data", profile="demo", options=options) as running:
            yield running.endpoints


@pytest.fixture(scope="module")
def records(stack: StackEndpoints, recording: Recording) -> list[dict[str, Any]]:
    """All records of the raw topic, once as many came as were played, and no more follow."""
    consumer = Consumer(
        {
            "bootstrap.servers": stack.bootstrap_servers,
            "group.id": "test-reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    found: list[dict[str, Any]] = []
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        decoder = RecordDecoder(registry.schema_by_id)
        try:
            consumer.assign([TopicPartition(TOPIC, p, OFFSET_BEGINNING) for p in range(4)])
            deadline = time.monotonic() + 120
            while len(found) < len(recording.trades):
                messages = consumer.consume(10_000, timeout=1)
                found += [decoder.decode(message.value()) for message in messages]
                assert time.monotonic() < deadline, f"only {len(found)} records came"
            assert consumer.consume(1, timeout=2) == []
        finally:
            consumer.close()
    return found


def kstream(stack: StackEndpoints, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kstream_agg", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"KSTREAM_STACK_DIR": str(stack.data_dir)},
    )


def windows_of(recording: Recording) -> dict[tuple[str, int], list[dict[str, Any]]]:
    windows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for trade in recording.trades:
        start = trade["timestamp"] - trade["timestamp"] % PERIOD_MS
        windows[trade["instrument_name"], start].append(trade)
    return windows


def test_every_trade_stands_exactly_once_in_the_topic(
    records: list[dict[str, Any]], recording: Recording
) -> None:
    assert len(recording.trades) >= 60_000
    played = Counter((t["instrument_name"], t["trade_seq"]) for t in recording.trades)
    stored = Counter((r["instrument_name"], r["trade_seq"]) for r in records)
    assert max(played.values()) == 1
    assert stored == played


def test_every_trade_stands_exactly_once_in_postgres_with_its_values(
    stack: StackEndpoints, records: list[dict[str, Any]], recording: Recording
) -> None:
    settings = PostgresSettings(
        port=stack.postgres_port, password_file=stack.postgres_password_file
    )
    expected = {
        (t["instrument_name"], t["trade_seq"]): (t["timestamp"], float(t["price"]))
        for t in recording.trades
    }
    assert len(records) == len(expected)
    pause = threading.Event()
    deadline = time.monotonic() + 120
    with connect(settings) as connection:
        while True:
            row = connection.execute("SELECT count(*) FROM trades_option_btc").fetchone()
            assert row is not None
            if row[0] == len(expected):
                break
            assert time.monotonic() < deadline, f"only {row[0]} rows came"
            pause.wait(0.5)
        rows = connection.execute(
            "SELECT instrument_name, trade_seq,"
            " round(extract(epoch FROM timestamp) * 1000)::bigint, price FROM trades_option_btc"
        ).fetchall()
    assert {(name, seq): (ms, price) for name, seq, ms, price in rows} == expected


@pytest.mark.usefixtures("records")
def test_every_window_equals_the_recomputation(stack: StackEndpoints, recording: Recording) -> None:
    said = kstream(stack, "verify", "--wait", "--json")
    assert said.returncode == 0, said.stdout + said.stderr
    checks = {check["check"]: check for check in json.loads(said.stdout)["checks"]}
    windows = len(windows_of(recording))
    assert {name: check["compared"] for name, check in checks.items()} == {
        "trades: topic = Postgres": len(recording.trades),
        "windows: topic = recomputation": windows,
        "windows: topic = Postgres": windows,
    }
    assert [check["not_compared"] for check in checks.values()] == [{}, {}, {}]


@pytest.mark.usefixtures("records")
def test_the_windows_of_the_table_are_those_of_the_recording(
    stack: StackEndpoints, recording: Recording
) -> None:
    """By arithmetic of this test's own, for the figures that need no history."""
    said = kstream(
        stack,
        "sql",
        "--csv",
        "SELECT instrument_name, round(extract(epoch FROM window_start) * 1000)::bigint AS start,"
        " trade_count, open, high, low, close, volume, sma FROM trades_option_btc_ewma_5min",
    )
    assert said.returncode == 0, said.stderr
    rows = {(row["instrument_name"], int(row["start"])): row
            for row in csv.DictReader(said.stdout.splitlines())}  # fmt: skip
    expected = windows_of(recording)
    assert rows.keys() == expected.keys()
    for key, trades in expected.items():
        row, prices = rows[key], [trade["price"] for trade in trades]
        by_seq = sorted(trades, key=lambda trade: int(trade["trade_seq"]))
        assert int(row["trade_count"]) == len(trades)
        assert float(row["open"]) == by_seq[0]["price"]
        assert float(row["close"]) == by_seq[-1]["price"]
        assert (float(row["high"]), float(row["low"])) == (max(prices), min(prices))
        assert float(row["sma"]) == pytest.approx(sum(prices) / len(prices), rel=1e-9)
        volume = sum(trade["amount"] for trade in trades)
        assert float(row["volume"]) == pytest.approx(volume, rel=1e-9)
