"""A demo of a recording of one's own, played once: what it says when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from recordings import write_csv_gz

from kstream_agg.core.settings import PostgresSettings
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.sinks.connect_api import ConnectClient
from kstream_agg.sinks.postgres import connect
from kstream_agg.sinks.settings import AGG_SINK, RAW_SINK
from kstream_agg.stack import control
from kstream_agg.stack.endpoints import find_running
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.settings import PortSettings
from kstream_agg.stack.testing import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confluent_kafka import Message

    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.stack.state import ComponentStatus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

TOPIC = "trades-option-btc"
TRADES = 500
_NOBODY = 65534


class Demo:
    """`kstream-agg` on a folder and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        names = list(PortSettings.model_fields)
        ports = zip(names, free_ports(len(names)), strict=True)
        self.environment = os.environ | {
            "KSTREAM__DATA_DIR": str(self.data_dir),
            "KSTREAM_STACK_DIR": str(self.data_dir),
            **{f"KSTREAM__PORTS__{name.upper()}": str(port) for name, port in ports},
        }

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kstream_agg", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=self.environment | environment,
        )

    def play(self, recording: Path) -> subprocess.CompletedProcess[str]:
        return self.command("demo", "--detach", "--recording", str(recording), "--loop", "0")

    def wait_for(self, name: str, state: str) -> ComponentStatus:
        deadline = time.monotonic() + 90
        while (found := control.read_status(self.data_dir).component(name)).state != state:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found

    def read_topic(self) -> list[Message]:
        """All records of the raw topic."""
        consumer = Consumer(
            {"bootstrap.servers": self.endpoints.bootstrap_servers, "group.id": "test-reader"}
        )
        try:
            spans = {}
            for number in range(4):
                place = TopicPartition(TOPIC, number)
                spans[number] = consumer.get_watermark_offsets(place, timeout=30)
            consumer.assign([TopicPartition(TOPIC, p, low) for p, (low, _) in spans.items()])
            return consumer.consume(sum(high - low for low, high in spans.values()), timeout=30)
        finally:
            consumer.close()

    @property
    def endpoints(self) -> StackEndpoints:
        found = find_running(self.data_dir)
        assert found is not None
        return found

    def query(self, statement: str) -> list[tuple[object, ...]]:
        settings = PostgresSettings(
            port=self.endpoints.postgres_port,
            password_file=self.endpoints.postgres_password_file,
        )
        with connect(settings) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def write_recording(path: Path, seed: int) -> Path:
    names = [f"BTC-27MAR26-{strike}-C" for strike in range(50_000, 60_000, 1000)]
    return write_csv_gz(path, generate_trades(seed=seed, count=TRADES, instruments=names).trades)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with open_folder("kstream-demo-") as folder:
        demo = Demo(folder)
        try:
            started = demo.play(write_recording(folder / "small.csv.gz", seed=5))
            assert started.returncode == 0, started.stdout + started.stderr
            yield demo
        finally:
            control.down(demo.data_dir)


def test_recording_is_played_once(demo: Demo) -> None:
    deadline = time.monotonic() + 90
    while (rows := demo.query("SELECT count(*) FROM trades_option_btc")) != [(TRADES,)]:
        assert time.monotonic() < deadline, rows
        time.sleep(0.2)
    assert len(demo.read_topic()) == TRADES
    assert demo.command("status").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at it as somebody else")
def test_nobody_else_reads_the_password_from_the_data_folder(demo: Demo) -> None:
    """Kafka keeps the connectors' configuration, and in it the password."""
    password = demo.endpoints.postgres_password_file.read_text(encoding="ascii")
    search = ["grep", "--recursive", "--text", "--files-with-matches", password, "."]
    found = subprocess.run(
        search, cwd=demo.data_dir, capture_output=True, text=True, check=False, timeout=60
    )
    assert any("connect-configs" in name for name in found.stdout.split())
    others = subprocess.run(
        search,
        cwd=demo.data_dir,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
    )
    assert others.stdout == ""
    for closed in ("kafka", "connect", "postgres", "logs", "postgres.password"):
        assert f"{closed}: Permission denied" in others.stderr


def repeat_a_record(demo: Demo) -> None:
    """Write the topic's first record once more."""
    found = demo.read_topic()[0]
    producer = Producer({"bootstrap.servers": demo.endpoints.bootstrap_servers})
    producer.produce(TOPIC, key=found.key(), value=found.value())
    assert producer.flush(30) == 0


def test_row_that_is_refused_is_shown_then_set_aside_and_sent_back_when_it_is_mended(
    demo: Demo,
) -> None:
    control.suspend(demo.data_dir, "connectors-watch")
    demo.query("ALTER TABLE trades_option_btc ADD CONSTRAINT closed CHECK (false) NOT VALID")
    repeat_a_record(demo)
    found = demo.wait_for("connectors", "unhealthy")
    assert f"{RAW_SINK}: task 0 is FAILED" in found.detail
    assert '"closed"' in found.detail
    status = demo.command("status")
    assert status.returncode == 1
    assert RAW_SINK in status.stdout

    control.resume(demo.data_dir, "connectors-watch")
    demo.wait_for("connectors", "done")
    listed = demo.command("dlq", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    (letter,) = map(json.loads, listed.stdout.splitlines())
    assert TOPIC in json.dumps(letter)

    demo.query("ALTER TABLE trades_option_btc DROP CONSTRAINT closed")
    replayed = demo.command("dlq", "replay", letter["place"], "--yes")
    assert replayed.returncode == 0, replayed.stderr
    assert demo.command("status").returncode == 0


def test_sink_that_was_removed_is_missed(demo: Demo) -> None:
    with ConnectClient(demo.endpoints.connect_url, 10) as client:
        client.delete(AGG_SINK)
        assert demo.wait_for("connectors", "unhealthy").detail.startswith(f"{AGG_SINK}: is ABSENT")
    assert demo.command("connectors", "apply").returncode == 0
    demo.wait_for("connectors", "done")


def test_channel_that_the_exchange_leaves_out_is_named_by_the_status(demo: Demo) -> None:
    control.down(demo.data_dir)
    only = "kafka,schema-registry,deribit-simulator,raw-producer"
    started = demo.command(
        *("stack", "up", "--profile", "demo", "--only", only, "--no-wait"),
        KSTREAM__CHANNELS="trades.NO-PERPETUAL.100ms",
        KSTREAM__SIMULATOR__RECORDING=str(demo.folder / "small.csv.gz"),
    )
    assert started.returncode == 0, started.stderr
    found = demo.wait_for("raw-producer", "backoff")
    assert "'trades.NO-PERPETUAL.100ms'" in found.detail
    assert "remedy: check the setting 'channels'" in found.detail
    status = demo.command("stack", "status")
    assert status.returncode == 1
    assert "NO-PERPETUAL" in status.stdout


def test_another_recording_is_refused_on_the_folder_and_nothing_starts(demo: Demo) -> None:
    control.down(demo.data_dir)
    refused = demo.play(write_recording(demo.folder / "other.csv.gz", seed=6))
    assert refused.returncode == 2
    assert "tells of 500 trades of 'small.csv.gz'" in refused.stderr
    assert "make reset" in refused.stderr
    assert not control.read_status(demo.data_dir).is_running
