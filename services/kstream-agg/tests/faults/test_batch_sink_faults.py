"""What the batch-sink writes while it, its group or ClickHouse breaks: no offset missing, none
twice, and only bad rows in the dead-letter topic.

One row in 10,000 is bad: ClickHouse refuses it, and with it every batch that it is in.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest
from warehouse import SESSION_MS, Sink, Warehouse, make_table, passing_on, trades, wait_for

from kstream_agg.core.names import dead_letter_topic
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

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

_PARTITIONS = 6
_BAD_PRICE = 666.25
_BAD_EVERY = 10_000


@pytest.fixture
def server() -> Iterator[ClickHouseServer]:
    with open_folder("kstream-clickhouse-") as folder, ClickHouseServer(folder) as running:
        yield running


@pytest.fixture
def warehouse(
    broken_stack: StackEndpoints,
    server: ClickHouseServer,
    unique: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Warehouse]:
    topic = unique("faulty")
    with Warehouse(broken_stack, server.url, topic, tmp_path, partitions=_PARTITIONS) as made:
        make_table(made)
        made.execute(
            f"ALTER TABLE {{t}} ADD COLUMN odd UInt8 MATERIALIZED throwIf(price = {_BAD_PRICE})"
        )
        yield made


class Load:
    """Sends trades, one in 10,000 bad: `quickly` so many as fast as two cores can stand, then a
    trickle as long as the block runs.
    """

    def __init__(self, warehouse: Warehouse, quickly: int) -> None:
        self._warehouse = warehouse
        self._quickly = quickly
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self.count = 0
        with SchemaRegistry(RegistrySettings(url=warehouse.stack.registry_url)) as registry:
            schema_id = registry.register_value(warehouse.topic, RAW_TRADE)
        encoder = RecordEncoder(RAW_TRADE, schema_id)
        self._good = [encoder.encode(record) for record in trades(1_000)]
        self._one_bad = encoder.encode(next(trades(1, price=_BAD_PRICE)))

    def _run(self) -> None:
        while self.count < self._quickly or not self._stop.is_set():
            size = 1_000 if self.count < self._quickly else 200
            for value in self._good[:size]:
                self.count += 1
                is_bad = self.count % _BAD_EVERY == _BAD_EVERY // 2
                chosen = self._one_bad if is_bad else value
                self._warehouse.send(chosen, None, self.count % _PARTITIONS)
            self._warehouse.producer.poll(0)
            self._stop.wait(0.5)
        self._warehouse.sent()

    @property
    def bad_count(self) -> int:
        return (self.count + _BAD_EVERY // 2) // _BAD_EVERY

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()


def assert_all_is_there_once(warehouse: Warehouse, load: Load) -> None:
    """By the two checks, by counting, and by what stands in the dead-letter topic."""
    check = warehouse.check()
    assert [(item.missing, item.twice) for item in check.partitions] == [(0, 0)] * _PARTITIONS
    assert check.exit_code == 0
    assert warehouse.count() == load.count - load.bad_count
    letters = warehouse.dead_letters()
    # At least once, as after a kill the same row can be refused again.
    assert len({(letter.partition, letter.offset) for letter in letters}) == load.bad_count
    assert all("Code: 395" in letter.message for letter in letters)
    assert sum(item.dead_letters for item in check.partitions) == load.bad_count


def said_by(sink: Sink) -> Callable[[], str]:
    return lambda: sink.said


def has_taken(warehouse: Warehouse, target: int) -> bool:
    return warehouse.taken() >= target


def test_ten_kills_at_random_lose_nothing_and_write_nothing_twice(warehouse: Warehouse) -> None:
    chance = random.Random(7)  # noqa: S311 - chance, not secrets
    with Load(warehouse, quickly=100_000) as load:
        for _ in range(10):
            sink = warehouse.sink(
                sink__batch_count="2000",
                pipeline__batch_records="2000",
                # The next one has the partitions at once, not when the group has missed this one.
                kafka__properties=json.dumps(
                    {"session.timeout.ms": SESSION_MS, "group.instance.id": "the-one"}
                ),
            )
            # Somewhere within its work: between inserts, commits and dead letters.
            target = warehouse.taken() + chance.randrange(1, 3_000)
            sink.start()
            wait_for(partial(has_taken, warehouse, target), said_by(sink))
            sink.kill()
    warehouse.run_until_taken()
    assert_all_is_there_once(warehouse, load)


def test_rebalances_an_outage_and_a_batch_refused_as_a_whole(
    warehouse: Warehouse, server: ClickHouseServer
) -> None:
    def goes_on() -> None:
        before = warehouse.taken()
        wait_for(lambda: warehouse.taken() > before + 500, lambda: first.said)

    with passing_on(server.url) as front:
        warehouse.url = front.url
        first, second, third = (
            warehouse.sink(sink__retry_max_s="2", pipeline__stop_within_s="3") for _ in range(3)
        )
        with Load(warehouse, quickly=60_000) as load, first:
            goes_on()
            second.start()
            third.start()
            wait_for(lambda: warehouse.members() == 3, lambda: second.said)
            goes_on()
            server.kill()
            wait_for(lambda: first.events("insert failed, trying again"), lambda: first.said)
            server.start()
            goes_on()
            assert second.stop() == 0
            third.kill()
            wait_for(lambda: warehouse.members() == 1, lambda: first.said)
            # A batch is too much as a whole, and so are its halves, but not their halves.
            front.faults.refuse = 5
            wait_for(lambda: front.faults.refuse == 0, lambda: first.said)
            goes_on()
    warehouse.url = server.url
    warehouse.run_until_taken()
    assert_all_is_there_once(warehouse, load)


def replay(warehouse: Warehouse, *arguments: str) -> str:
    """What `kstream-agg dlq replay` says in its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "kstream_agg", "dlq", "replay", *arguments, "--yes"],
        env=warehouse.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_mended_rows_are_brought_back_exactly_once(warehouse: Warehouse, tmp_path: Path) -> None:
    with Load(warehouse, quickly=2 * _BAD_EVERY) as load:
        pass
    assert load.bad_count == 2
    warehouse.run_until_taken()
    # Another group sets the same rows aside: four letters of two records.
    with warehouse.sink(sink__group_id=f"{warehouse.group}-2") as other:
        wait_for(lambda: len(warehouse.dead_letters()) == 2 * load.bad_count, said_by(other))
        assert other.stop() == 0
    assert_all_is_there_once(warehouse, load)

    # One is mended itself.
    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps(next(trades(1, price=667.0))))
    dead = dead_letter_topic(warehouse.topic)
    assert "1 sent back" in replay(warehouse, f"{dead}/0/0", "--record-file", str(mended))
    # For the other, what refused it is gone. Its twin, and both letters of the first, stay.
    warehouse.execute("ALTER TABLE {t} DROP COLUMN odd")
    assert replay(warehouse, warehouse.topic) == "1 sent back, 2 were before"
    assert replay(warehouse, warehouse.topic) == "0 sent back, 4 were before"

    with warehouse.sink() as sink:
        wait_for(lambda: warehouse.count() == load.count, lambda: sink.said)
        assert sink.stop() == 0
    found = warehouse.rows(
        f"SELECT price, count() FROM {{t}} FINAL WHERE price IN (667, {_BAD_PRICE})"
        " GROUP BY price ORDER BY price"
    )
    assert [(price, int(count)) for price, count in found] == [(_BAD_PRICE, 1), (667.0, 1)]
    code, partitions = warehouse.command_check(sink__topics=warehouse.topic)
    assert (code, [(x["missing"], x["twice"]) for x in partitions]) == (0, [(0, 0)] * _PARTITIONS)
    assert sum(x["dead_letters"] for x in partitions) == load.bad_count
