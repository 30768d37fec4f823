"""The batch-sink between a real broker and a real ClickHouse."""

from __future__ import annotations

import copy
import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from warehouse import DeadLetter, Warehouse, make_table, passing_on, trades, wait_for

from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import RegistrySettings
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.wire import RecordEncoder
from kstream_agg.stack.clickhouse import ClickHouseServer
from kstream_agg.stack.testing import open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[ClickHouseServer]:
    with open_folder("kstream-clickhouse-") as folder, ClickHouseServer(folder) as running:
        yield running


@pytest.fixture
def warehouse(
    stack: StackEndpoints,
    server: ClickHouseServer,
    unique: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Warehouse]:
    with Warehouse(stack, server.url, unique("sinking"), tmp_path) as made:
        yield made


@pytest.fixture
def encode(
    stack: StackEndpoints, warehouse: Warehouse
) -> Iterator[Callable[[dict[str, Any]], bytes]]:
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        schema_id = registry.register_value(warehouse.topic, RAW_TRADE)
        yield RecordEncoder(RAW_TRADE, schema_id).encode


def with_venue(stack: StackEndpoints, topic: str) -> RecordEncoder:
    schema = copy.deepcopy(RAW_TRADE)
    schema["fields"].append({"name": "venue", "type": ["null", "string"], "default": None})
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        return RecordEncoder(schema, registry.register_value(topic, schema))


def test_each_field_reaches_its_column_and_a_newer_schema_adds_one(
    stack: StackEndpoints, warehouse: Warehouse, encode: Callable[[dict[str, Any]], bytes]
) -> None:
    records = list(trades(700))
    for record in records:
        warehouse.send(encode(record), record["instrument_name"].encode())
    newer = with_venue(stack, warehouse.topic)
    more = {**records[0], "trade_seq": 701, "venue": "Ünknown"}
    warehouse.send(newer.encode(more), b"k")
    warehouse.sent()
    warehouse.run_until_taken()
    names = [field["name"] for field in RAW_TRADE["fields"]]
    found = warehouse.rows(f"SELECT {', '.join(names)}, venue FROM {{t}} FINAL ORDER BY trade_seq")
    wanted = [[record.get(name) for name in [*names, "venue"]] for record in [*records, more]]
    assert [normal(row) for row in found] == [normal(row) for row in wanted]
    assert warehouse.check().exit_code == 0
    places = warehouse.rows(
        "SELECT kafka_topic, kafka_partition, count(), min(kafka_offset), max(kafka_offset) + 1"
        " FROM {t} FINAL GROUP BY kafka_topic, kafka_partition"
    )
    assert sum(int(row[2]) for row in places) == 701
    assert all(row[0] == warehouse.topic and row[3:] == ["0", row[2]] for row in places)


def normal(row: list[Any]) -> list[Any]:
    """A row with its numbers as numbers: JSON has large ones as texts, and times as either."""
    return [_number(value) for value in row]


def _number(value: object) -> object:
    if isinstance(value, str) and value.isdecimal():
        return float(value)
    if isinstance(value, str) and value[:2] == "20" and value[4:5] == "-":
        moment = dt.datetime.fromisoformat(value).replace(tzinfo=dt.UTC)
        return float(round(moment.timestamp() * 1000))
    return float(value) if isinstance(value, int) else value


def test_bad_records_become_dead_letters_with_the_reason_and_their_neighbours_are_written(
    warehouse: Warehouse, encode: Callable[[dict[str, Any]], bytes], server: ClickHouseServer
) -> None:
    # The table refuses a price; the server, not the sink, finds that out.
    make_table(warehouse)
    warehouse.execute("ALTER TABLE {t} ADD COLUMN odd UInt8 MATERIALIZED throwIf(price = 666.25)")
    for number, record in enumerate(trades(3_000)):
        value = encode({**record, "price": 666.25} if number == 1_234 else record)
        warehouse.send(b"not Avro" if number == 77 else value, b"k", 0)
    warehouse.sent()
    with passing_on(server.url) as front:
        warehouse.url = front.url
        # Done, and not known to be: the same rows are sent again.
        front.faults.lose_answers = 1
        sink = warehouse.run_until_taken()
        assert front.faults.lose_answers == 0
    undecodable, refused = warehouse.dead_letters()
    assert undecodable == DeadLetter(
        0, 77, "map to_rows", "the value does not begin with the Avro wire format's header"
    )
    assert (refused.partition, refused.offset, refused.stage) == (0, 1_234, "reduce 2 clickhouse")
    assert "Code: 395" in refused.message
    assert warehouse.count() == 2_998
    check = warehouse.check()
    [report] = check.partitions
    assert check.exit_code == 0
    assert (report.missing, report.twice, report.dead_letters) == (0, 0, 2)
    assert sink.events("insert failed, trying again")


def test_the_check_tells_records_that_are_lost_from_offsets_that_are_none(
    warehouse: Warehouse,
) -> None:
    producer = Producer(warehouse.kafka.client_config() | {"transactional.id": warehouse.topic})
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        for item in range(10):
            producer.produce(warehouse.topic, f"{number}/{item}", partition=0)
        if number == 3:
            # What has not reached the broker would leave no offsets.
            assert producer.flush(60) == 0
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    # Nothing is committed: there need not even be a table.
    assert warehouse.check().exit_code == 2
    warehouse.execute(CREATE_RAW)
    with warehouse.sink(sink__values="raw") as sink:
        # Behind the last record stands the end of its transaction, which nobody reads.
        wait_for(lambda: warehouse.taken() == 65, lambda: sink.said)
    check = warehouse.check()
    [report] = check.partitions
    assert check.exit_code == 0
    assert (report.rows, report.no_records, report.missing) == (50, 15, 0)
    # One row twice, which FINAL and merges mend, and another one gone.
    columns = "topic, partition, offset, timestamp, key, value"
    for statement in (
        "RENAME TABLE {t} TO {t}_all",
        CREATE_RAW,
        f"INSERT INTO {{t}} ({columns}) SELECT {columns} FROM {{t}}_all WHERE offset != 25",
        f"INSERT INTO {{t}} ({columns}) SELECT {columns} FROM {{t}}_all WHERE offset = 5",
        "DROP TABLE {t}_all",
    ):
        warehouse.execute(statement)
    [report] = warehouse.check().partitions
    assert (report.missing, report.examples) == (1, (25,))
    assert (report.twice, report.unmerged) == (0, 1)
    code, [told] = warehouse.command_check(sink__values="raw")
    assert (code, told["missing"], told["examples"]) == (1, 1, [25])


CREATE_RAW = (
    "CREATE TABLE {t} (topic String, partition UInt32, offset UInt64, timestamp DateTime,"
    " key Nullable(String), value Nullable(String))"
    " ENGINE = ReplacingMergeTree ORDER BY (topic, partition, offset)"
)


def test_a_table_of_ones_own_gets_the_columns_it_has(warehouse: Warehouse) -> None:
    warehouse.client.execute(
        f"CREATE TABLE {warehouse.table} (`partition` UInt32, `offset` UInt64,"
        " `timestamp` DateTime) ENGINE = MergeTree ORDER BY (partition, offset, timestamp)"
    )
    for item in range(300):
        warehouse.send(bytes([item % 256]) * item)
    warehouse.sent()
    # Longer than the test: only the end of the sink closes the batch.
    with warehouse.sink(sink__values="raw", sink__batch_seconds="1000") as sink:
        wait_for(lambda: sink.events("running"), lambda: sink.said)
        wait_for(lambda: _consumed(sink.get("/metrics")[1]) == 300, lambda: sink.said)
        assert warehouse.count(final=False) == 0
        assert sink.get("/readyz")[0] == 200
        assert sink.stop() == 0
    assert warehouse.count(final=False) == 300
    assert warehouse.check().exit_code == 0
    # Nothing mends what is twice in such a table.
    warehouse.execute("INSERT INTO {t} SELECT * FROM {t} LIMIT 1")
    check = warehouse.check()
    assert check.exit_code == 1
    assert sum(item.twice for item in check.partitions) == 1


def _consumed(metrics: str) -> int:
    lines = metrics.splitlines()
    found = [line for line in lines if line.startswith("kstream_records_consumed_total{")]
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in found))


def test_a_wrong_password_ends_the_sink_with_a_sentence(warehouse: Warehouse) -> None:
    with warehouse.sink(clickhouse__user="nobody") as sink:
        assert sink.wait() == 2
        sink.process = None
    assert "refuses the user" in sink.said
    assert "KSTREAM__CLICKHOUSE__USER" in sink.said
    assert "Traceback" not in sink.said


def test_a_schema_no_column_is_made_for_ends_the_sink_with_the_fields_name(
    stack: StackEndpoints, warehouse: Warehouse
) -> None:
    schema = {
        "type": "record",
        "name": "Tagged",
        "fields": [{"name": "tags", "type": {"type": "map", "values": "string"}}],
    }
    with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
        registry.register_value(warehouse.topic, schema)
    with warehouse.sink() as sink:
        assert sink.wait() == 1
        sink.process = None
    assert "field 'tags'" in sink.said
    assert "sink.values" in sink.said
    assert "Traceback" not in sink.said
