"""The JDBC sinks in a real Connect, writing into a real Postgres."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.core.settings import KafkaSettings, PostgresSettings, RegistrySettings
from kstream_agg.kafka.dlq import header_value
from kstream_agg.sinks.connectors import apply, wait_until_running
from kstream_agg.sinks.settings import (
    AGG_SINK,
    RAW_SINK,
    AggregatorView,
    ConnectSettings,
    ToolSettings,
)
from kstream_agg.stack import control
from kstream_agg.verify.reading import TopicReader
from kstream_agg.verify.testing import SinkBench, at, average_record, running_sinks, trade_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

BASE_MS = 1_760_000_000_123
PLACES = ("values", "poison", "outage", "repeats", "averages")


@pytest.fixture(scope="module")
def bench(stack: StackEndpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkBench]:
    folder = tmp_path_factory.mktemp("connectors")
    name = f"t{folder.stat().st_ino}"
    channels = tuple(f"trades.{place}-{name}.100ms" for place in PLACES)
    common: dict[str, Any] = {
        "channels": channels,
        "kafka": KafkaSettings(bootstrap_servers=stack.bootstrap_servers),
        "registry": RegistrySettings(url=stack.registry_url),
    }
    settings = ToolSettings(
        **common,
        connect=ConnectSettings(url=stack.connect_url),
        postgres=PostgresSettings(
            port=stack.postgres_port, password_file=stack.postgres_password_file
        ),
    )
    with running_sinks(settings, AggregatorView(**common), folder, name) as running:
        yield running


def raw_topic(bench: SinkBench, place: str) -> str:
    return bench.aggregator.raw_topics[PLACES.index(place)]


def test_every_value_arrives_exactly(bench: SinkBench) -> None:
    topic = raw_topic(bench, "values")
    full = trade_record(
        "BTC-27MAR26-100000-C",
        7,
        BASE_MS,
        price=0.1 + 0.2,
        iv=float("5e-324"),
        starbase_match_id=2**53 + 1,
        starbase_timestamp=1_760_000_000_123_456_789,
        legs='[{"ratio": 1}]',
        liquidation="MT",
        extra='{"neu": "Ł"}',
        received_at=BASE_MS + 876,
    )
    ancient = trade_record("BTC-PERPETUAL", 1, -1)
    bench.write_trades(topic, [full, ancient])
    bench.wait_written(bench.sinks[0])
    names = ", ".join(full)
    ordered = bench.query(f"SELECT {names} FROM {{}} ORDER BY trade_seq DESC", topic)
    times = {"timestamp", "received_at"}
    for record, row in zip((full, ancient), ordered, strict=True):
        expected = {k: at(v) if k in times and v is not None else v for k, v in record.items()}
        assert dict(zip(record, row, strict=True)) == expected


def test_bad_records_are_set_aside_and_their_neighbours_written(bench: SinkBench) -> None:
    topic = raw_topic(bench, "poison")
    good = [trade_record("SICK-PERPETUAL", seq, BASE_MS + seq) for seq in range(1, 5)]
    bodies: list[bytes | None] = [bench.encode(topic, record) for record in good]
    poison = [b"no avro", b"\x00\x7f\xff\xff\xffunknown schema", (bodies[0] or b"")[:-6]]
    # One key, so one partition: each bad record stands between good ones.
    mixed = [bodies[0], poison[0], bodies[1], poison[1], bodies[2], poison[2], None, bodies[3]]
    bench.write(topic, [("SICK-PERPETUAL", value) for value in mixed])
    bench.wait_written(bench.sinks[0])

    assert bench.query("SELECT trade_seq FROM {} ORDER BY 1", topic) == [(1,), (2,), (3,), (4,)]
    with TopicReader(bench.settings.kafka) as reader:
        letters = [
            record
            for record in reader.read(reader.spans([bench.sinks[0].dead_letter_topic]))
            if header_value(record.headers, "__connect.errors.topic") == topic
        ]
    assert [letter.value for letter in letters] == poison
    offsets = [header_value(letter.headers, "__connect.errors.offset") for letter in letters]
    assert offsets == ["1", "3", "5"]
    assert all(header_value(x.headers, "__connect.errors.exception.message") for x in letters)


def test_of_two_rows_with_one_key_in_a_batch_the_last_is_kept(bench: SinkBench) -> None:
    topic = raw_topic(bench, "repeats")
    trades = [
        trade_record("TWICE-PERPETUAL", seq, BASE_MS, price=price)
        for price in (1.0, 2.0, 3.0)
        for seq in range(1, 301)
    ]
    bench.write_trades(topic, trades)
    bench.wait_written(bench.sinks[0])
    assert bench.query("SELECT count(*), min(price), max(price) FROM {}", topic) == [
        (300, 3.0, 3.0)
    ]


def test_a_later_revision_of_a_window_replaces_the_row(bench: SinkBench) -> None:
    topic = bench.aggregator.average_topics[PLACES.index("averages")]
    start = 1_760_000_100_000
    revisions = [
        average_record("REV-PERPETUAL", start, revision=number, current=1.0 + number, vwap=None)
        for number in range(3)
    ]
    bench.write_averages(topic, revisions)
    bench.wait_written(bench.sinks[1])
    rows = bench.query("SELECT window_start, window_end, revision, current, vwap FROM {}", topic)
    assert rows == [(at(start), at(start + 300_000), 2, 3.0, None)]


def test_a_stopped_postgres_pauses_the_sink_and_all_rows_arrive(
    bench: SinkBench, stack: StackEndpoints
) -> None:
    topic = raw_topic(bench, "outage")
    dead_letters = bench.sinks[0].dead_letter_topic
    trades = [trade_record("OUT-PERPETUAL", seq, BASE_MS + seq) for seq in range(1, 3001)]
    with TopicReader(bench.settings.kafka) as reader:
        before = reader.spans([dead_letters])
    bench.write_trades(topic, trades[:1000])
    bench.wait_written(bench.sinks[0])
    control.suspend(stack.data_dir, "postgres")
    try:
        bench.write_trades(topic, trades[1000:])
    finally:
        control.resume(stack.data_dir, "postgres")
    bench.wait_written(bench.sinks[0])

    assert bench.query("SELECT count(*), max(trade_seq) FROM {}", topic) == [(3000, 3000)]
    with TopicReader(bench.settings.kafka) as reader:
        assert reader.spans([dead_letters]) == before
    assert wait_until_running(bench.client, bench.sinks[0].name, bench.patience()).is_running


def test_an_absent_postgres_is_waited_for_at_the_start(
    bench: SinkBench, stack: StackEndpoints
) -> None:
    control.suspend(stack.data_dir, "postgres")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "kstream_agg", "connectors", "apply"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"KSTREAM_STACK_DIR": str(stack.data_dir)},
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Postgres" in line:
                break
    finally:
        control.resume(stack.data_dir, "postgres")
    said.append(process.communicate(timeout=120)[0])
    bench.client.delete(RAW_SINK)
    bench.client.delete(AGG_SINK)
    assert process.returncode == 0, said
    assert "Traceback" not in "".join(said)


def test_a_replay_from_the_beginning_gives_no_duplicates(bench: SinkBench) -> None:
    topic = raw_topic(bench, "repeats")
    bench.write_trades(topic, [trade_record("AGAIN-PERPETUAL", s, BASE_MS) for s in range(1, 51)])
    bench.wait_written(bench.sinks[0])
    before = bench.query("SELECT * FROM {} ORDER BY instrument_name, trade_seq", topic)
    name = bench.sinks[0].name
    config = bench.client.config(name)
    assert config is not None
    # A new group has read nothing: the sink begins anew.
    bench.client.delete(name)
    config["consumer.override.group.id"] += "-again"
    bench.client.put_config(name, config)
    wait_until_running(bench.client, name, bench.patience())
    try:
        bench.wait_written(bench.sinks[0], config["consumer.override.group.id"])
        assert bench.query("SELECT * FROM {} ORDER BY instrument_name, trade_seq", topic) == before
    finally:
        apply(bench.sinks, bench.settings, bench.client, bench.patience())


def test_applying_twice_changes_nothing(bench: SinkBench) -> None:
    first = [bench.client.config(sink.name) for sink in bench.sinks]
    topic = raw_topic(bench, "values")
    columns = "SELECT xmin FROM pg_class WHERE oid = '{}'::regclass"
    written = bench.query(columns, topic)
    found = apply(bench.sinks, bench.settings, bench.client, bench.patience())
    assert all(status.is_running for status in found)
    assert [bench.client.config(sink.name) for sink in bench.sinks] == first
    assert bench.query(columns, topic) == written
