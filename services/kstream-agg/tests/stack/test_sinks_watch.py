"""Rows that Postgres refuses, on a real Connect: set aside, and everything else written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sinks import BASE_MS, letters_of, tool_settings, watching

from kstream_agg.core.metrics import DEAD_LETTERS
from kstream_agg.verify.testing import running_sinks, trade_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.verify.testing import SinkBench

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def bench(stack: StackEndpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkBench]:
    folder = tmp_path_factory.mktemp("watch")
    name = f"w{folder.stat().st_ino}"
    settings, aggregator = tool_settings(stack, (f"trades.refused-{name}.100ms",))
    with running_sinks(settings, aggregator, folder, name) as running:
        yield running


def test_refused_rows_are_set_aside_and_all_others_written(bench: SinkBench) -> None:
    topic = bench.aggregator.raw_topics[0]
    bench.execute("ALTER TABLE {} ADD CONSTRAINT no_devil CHECK (price <> 666)", topic)
    trades = [
        trade_record(f"I{number}-PERPETUAL", seq, BASE_MS + seq)
        for seq in range(1, 301)
        for number in range(6)
    ]
    trades[700]["price"] = 666.0
    trades[1201]["extra"] = "a\0b"
    bad = {(t["instrument_name"], t["trade_seq"]): t for t in (trades[700], trades[1201])}
    before = bench.client.config(bench.sinks[0].name)
    # An undecodable record right in front of the row that is refused, in the same partition.
    for trade in trades:
        key = trade["instrument_name"]
        if trade is trades[700]:
            bench.write(topic, [(key, b"no avro"), (key, bench.encode(topic, trade))])
    bench.write_trades(topic, (t for t in trades if t is not trades[700]))
    with watching(bench) as context:
        bench.wait_written(bench.sinks[0])
    assert bench.query("SELECT count(*), count(DISTINCT (instrument_name, trade_seq)) FROM {}",
                       topic) == [(len(trades) - 2, len(trades) - 2)]  # fmt: skip
    letters = [letter for letter in letters_of(bench, topic) if letter.stage == "write"]
    assert {letter.value for letter in letters} == {bench.encode(topic, t) for t in bad.values()}
    assert len(letters) == 2
    assert {(x.error_class, x.message.rsplit("SQLSTATE ", 1)[-1]) for x in letters} == {
        ("CheckViolation", "23514)"),
        ("CharacterNotInRepertoire", "22021)"),
    }
    counted = context.metrics.counter(DEAD_LETTERS).labels(letters[0].place.topic, "write")
    assert counted._value.get() == 2
    assert bench.client.config(bench.sinks[0].name) == before
    assert bench.client.status(bench.sinks[0].name).is_running
    assert context.health.problems() == {}
