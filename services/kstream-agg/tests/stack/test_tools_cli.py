"""`sql`, `consume`, `topics` and `connectors` against the real stack."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AdminClient

from kstream_agg.core.errors import ContractError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import (
    KafkaSettings,
    PostgresSettings,
    RegistrySettings,
    TopicSettings,
)
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordEncoder
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.sinks.postgres import connect
from kstream_agg.sinks.settings import AGG_SINK, RAW_SINK
from kstream_agg.sinks.tables import Column, Table, ensure, raw_table
from kstream_agg.verify.testing import trade_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def command(stack: StackEndpoints, *arguments: str) -> list[str]:
    del stack
    return [sys.executable, "-m", "kstream_agg", *arguments]


def environment(stack: StackEndpoints) -> dict[str, str]:
    # No addresses: the tools find the running stack by its folder.
    return os.environ | {"KSTREAM_STACK_DIR": str(stack.data_dir)}


def run(stack: StackEndpoints, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(stack, *arguments),
        env=environment(stack),
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def topic(stack: StackEndpoints, unique: Callable[[str], str]) -> Iterator[str]:
    """A topic of three trades and a value that is no Avro."""
    name = unique("trades-tools")
    kafka = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
    cluster = KafkaCluster(kafka, "test")
    cluster.create_topics([topic_configuration(name, TopicSettings(), compact=True, partitions=2)])
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        encoder = RecordEncoder(RAW_TRADE, registry.register_value(name, RAW_TRADE))
    with RecordWriter(kafka, Metrics(), "test") as writer:
        for seq in (1, 2, 3):
            value = encoder.encode(trade_record("T", seq, 1_760_000_000_123))
            writer.produce(name, value, key=b"T", partition=0)
        writer.produce(name, b"no avro", key=b"T", partition=0)
    yield name
    cluster.delete_topics([name])


@pytest.fixture
def postgres(stack: StackEndpoints) -> Iterator[psycopg.Connection[Any]]:
    settings = PostgresSettings(
        port=stack.postgres_port, password_file=stack.postgres_password_file
    )
    with connect(settings) as connection:
        yield connection


def test_consume_prints_what_stands_in_the_topic(stack: StackEndpoints, topic: str) -> None:
    done = run(stack, "consume", topic, "--from", "beginning", "--count", "4")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["@"]["offset"] for line in lines] == [0, 1, 2, 3]
    assert [line.get("trade_seq") for line in lines] == [1, 2, 3, None]
    assert lines[0]["timestamp"] == 1_760_000_000_123
    assert lines[3]["@value"] == "bm8gYXZybw=="


def test_consume_follows_until_it_is_interrupted(stack: StackEndpoints, topic: str) -> None:
    with subprocess.Popen(
        command(stack, "consume", topic, "--from", "beginning"),
        env=environment(stack),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert json.loads(lines[3])["@"]["offset"] == 3
    assert (process.returncode, rest, errors) == (0, "", "")


def test_an_unknown_topic_is_answered_with_near_names(stack: StackEndpoints, topic: str) -> None:
    done = run(stack, "consume", topic[:-1] + "x")
    assert done.returncode == 1
    assert f"error: there is no topic '{topic[:-1]}x'" in done.stderr
    assert f"did you mean {topic}" in done.stderr


def test_topics_are_listed_with_what_stands_in_them(stack: StackEndpoints, topic: str) -> None:
    done = run(stack, "topics")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if topic in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        topic,
        "2",
        "4",
        "compact,delete",
    ]


def test_sql_prints_a_table_and_csv(stack: StackEndpoints) -> None:
    query = "SELECT 9007199254740993 AS big, '[red]x' AS text, NULL AS none, 0.1::float8 AS f"
    table = run(stack, "sql", query)
    assert table.returncode == 0, table.stderr
    for cell in ("9007199254740993", "[red]x", "∅", "0.1", "1 row"):
        assert cell in table.stdout
    moment = "SELECT '2026-01-02 03:04:05.678+00'::timestamptz AS at, 'a,b' AS text, NULL AS none"
    printed = run(stack, "sql", "--csv", moment)
    assert list(csv.reader(io.StringIO(printed.stdout))) == [
        ["at", "text", "none"],
        ["2026-01-02 03:04:05.678+00:00", "a,b", ""],
    ]


def test_sql_tells_postgres_errors_in_one_sentence(stack: StackEndpoints) -> None:
    done = run(stack, "sql", "SELECT * FROM nowhere")
    assert done.returncode == 1
    assert done.stderr == ('error: Postgres: relation "nowhere" does not exist (SQLSTATE 42P01)\n')
    assert 'syntax error at or near "SELEC"' in run(stack, "sql", "SELEC").stderr


def test_sql_without_a_query_is_psql(stack: StackEndpoints) -> None:
    done = run(stack, "sql", text="\\conninfo\nSELECT 40 + 2 AS answer;\nSHOW timezone;\n")
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout
    assert "UTC" in done.stdout


def test_connectors_that_are_not_there_make_status_fail(
    stack: StackEndpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token, file in ((RAW_SINK, "raw-pg.json"), (AGG_SINK, "agg-pg.json")):
        (tmp_path / token).mkdir()
        text = json.dumps({"name": f"{token}-{tmp_path.name}", "config": {}})
        (tmp_path / token / file).write_text(text, encoding="utf-8")
    monkeypatch.setenv("KSTREAM_CONFIG_DIR", str(tmp_path))
    done = run(stack, "connectors", "status")
    assert done.returncode == 1
    assert done.stdout.count("ABSENT") == 2


def test_tables_are_created_completed_and_not_taken_for_others(
    postgres: psycopg.Connection[Any], unique: Callable[[str], str]
) -> None:
    table = raw_table(unique("trades"))
    older = Table(table.name, table.columns[:-1], table.key)
    try:
        assert ensure(postgres, [older]) == [f"created table {table.name}"]
        assert ensure(postgres, [table]) == [f"added column {table.name}.extra"]
        assert ensure(postgres, [table]) == []
        comment = postgres.execute(
            "SELECT col_description(%s::regclass, 4)", (table.name,)
        ).fetchone()
        assert comment == ("Event time at the exchange",)
        other = Table(table.name, (Column("price", "string", nullable=False),), ("price",))
        with pytest.raises(ContractError, match="price is double precision, not text") as caught:
            ensure(postgres, [other])
        assert "its primary key is (instrument_name, trade_seq)" in str(caught.value)
    finally:
        postgres.execute(f'DROP TABLE IF EXISTS "{table.name}"')


def test_the_tools_leave_no_consumer_group(stack: StackEndpoints, topic: str) -> None:
    run(stack, "consume", topic, "--from", "beginning", "--count", "1")
    admin = AdminClient({"bootstrap.servers": stack.bootstrap_servers})
    groups = admin.list_consumer_groups(request_timeout=30).result().valid
    assert "kstream-agg-verify" not in [group.group_id for group in groups]
