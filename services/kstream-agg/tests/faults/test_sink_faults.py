"""Rows that Postgres refuses, the watch killed at every step, and letters brought back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sinks import BASE_MS, letters_of, tool_settings, watch_process, watching

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import KafkaSettings, TopicSettings
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.dlq import Origin, error_headers
from kstream_agg.kafka.topic_reader import TopicReader
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.sinks.connectors import apply
from kstream_agg.sinks.narrowing import narrowed
from kstream_agg.stack import control
from kstream_agg.verify.testing import running_sinks, trade_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.verify.testing import SinkBench

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

PLACES = ("many", "killed", "begun", "limit", "registry")
# The watch is killed as it begins each of them.
STEPS = (
    "stop",
    "ask",
    "write_letters",
    "move_offset",
    "restore",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sinks")


@pytest.fixture(scope="module")
def bench(stack: StackEndpoints, folder: Path) -> Iterator[SinkBench]:
    name = f"f{folder.stat().st_ino}"
    channels = tuple(f"trades.{place}-{name}.100ms" for place in PLACES)
    settings, aggregator = tool_settings(stack, channels)
    with running_sinks(settings, aggregator, folder, name) as running:
        yield running


def topic_of(bench: SinkBench, place: str) -> str:
    return bench.aggregator.raw_topics[PLACES.index(place)]


def trades_with_bad_ones(count: int, bad: tuple[int, ...]) -> list[dict[str, Any]]:
    trades = [
        trade_record(f"I{number % 50}-PERPETUAL", number // 50 + 1, BASE_MS + number)
        for number in range(count)
    ]
    for number in bad:
        trades[number]["price"] = 666.0
    return trades


def refuse_devils(bench: SinkBench, topic: str) -> None:
    bench.execute("ALTER TABLE {} ADD CONSTRAINT no_devil CHECK (price <> 666)", topic)


def until(bench: SinkBench, what: str, holds: Callable[[], bool], seconds: float = 180.0) -> None:
    def attempt() -> None:
        if not holds():
            raise UnavailableError(f"not yet: {what}")

    bench.patience(seconds).until_available(what, attempt)


def test_five_refused_rows_among_a_hundred_thousand(bench: SinkBench) -> None:
    topic = topic_of(bench, "many")
    refuse_devils(bench, topic)
    bad = (17, 30_000, 30_050, 77_777, 99_999)
    trades = trades_with_bad_ones(100_000, bad)
    config = bench.client.config(bench.sinks[0].name)
    with watching(bench, every_s=1.0) as context:
        bench.write_trades(topic, trades)
        until(bench, "5 letters", lambda: len(letters_of(bench, topic)) >= 5, 300.0)
        bench.wait_written(bench.sinks[0])
    found = bench.query("SELECT count(*), count(*) FILTER (WHERE price = 666) FROM {}", topic)
    assert found == [(99_995, 0)]
    letters = letters_of(bench, topic)
    assert sorted(str(letter.value) for letter in letters) == sorted(
        str(bench.encode(topic, trades[number])) for number in bad
    )
    assert {(x.stage, x.error_class) for x in letters} == {("write", "CheckViolation")}
    assert bench.client.config(bench.sinks[0].name) == config
    assert context.health.problems() == {}


def test_the_watch_killed_at_every_step(
    bench: SinkBench, stack: StackEndpoints, folder: Path
) -> None:
    topic = topic_of(bench, "killed")
    refuse_devils(bench, topic)
    name = bench.sinks[0].name
    config = bench.client.config(name)
    trades = trades_with_bad_ones(500, (321,))
    bench.write_trades(topic, trades)
    until(bench, "the sink has failed", lambda: bench.client.status(name).has_failed)
    for step in STEPS:
        killed_at(step, stack, folder, bench.settings.channels)
    with watching(bench, step_timeout_s=15.0):
        bench.wait_written(bench.sinks[0])
        until(bench, "its configuration", lambda: bench.client.config(name) == config)
    assert [x.value for x in letters_of(bench, topic)] == [bench.encode(topic, trades[321])]
    assert bench.query("SELECT count(*) FROM {}", topic) == [(499,)]


def killed_at(step: str, stack: StackEndpoints, folder: Path, channels: tuple[str, ...]) -> None:
    process = watch_process(stack, folder, channels)
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            with contextlib.suppress(ValueError):
                if json.loads(line).get("step") == step:
                    return
        pytest.fail(f"it ended before {step}: {said}")
    finally:
        process.kill()
        process.wait(30)
        process.stderr.close()


def test_a_rescue_that_was_ended_is_finished_and_apply_leaves_it_alone(bench: SinkBench) -> None:
    name, topic = bench.sinks[0].name, topic_of(bench, "begun")
    config = bench.client.config(name)
    assert config is not None
    bench.client.put_config(name, narrowed(config, 1))
    bench.client.stop(name)
    bench.write_trades(topic, trades_with_bad_ones(10, ()))
    with watching(bench, step_timeout_s=15.0):
        apply(bench.sinks, bench.settings, bench.client, bench.patience())
        bench.wait_written(bench.sinks[0])
        until(bench, "its configuration", lambda: bench.client.config(name) == config)
    assert bench.query("SELECT count(*) FROM {}", topic) == [(10,)]


def test_no_more_rows_an_hour_than_allowed(bench: SinkBench) -> None:
    topic = topic_of(bench, "limit")
    refuse_devils(bench, topic)
    name = bench.sinks[0].name
    config = bench.client.config(name)
    before = sum(x.stage == "write" for place in PLACES for x in letters_of(
        bench, topic_of(bench, place)
    ))  # fmt: skip
    trades = trades_with_bad_ones(100, (0, 50))  # of one instrument, so of one partition
    bench.write_trades(topic, trades)
    with watching(bench, rows_per_hour=before + 1) as context:
        until(bench, "it says so", lambda: "in an hour" in str(context.health.problems()))
    assert len(letters_of(bench, topic)) == 1
    assert bench.client.config(name) == config
    assert bench.client.status(name).has_failed
    with watching(bench):
        bench.wait_written(bench.sinks[0])
    assert len(letters_of(bench, topic)) == 2
    assert bench.query("SELECT count(*) FROM {}", topic) == [(98,)]


def dlq_replay(stack: StackEndpoints, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kstream_agg", "dlq", "replay", *arguments, "--yes"],
        env=os.environ | {"KSTREAM_STACK_DIR": str(stack.data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_good_records_set_aside_without_a_registry_are_brought_back(
    bench: SinkBench, stack: StackEndpoints
) -> None:
    topic = topic_of(bench, "registry")
    name = bench.sinks[0].name
    bench.client.stop(name)
    until(bench, "it is stopped", lambda: bench.client.status(name).is_stopped)
    trades = trades_with_bad_ones(60, ())
    bench.write_trades(topic, trades)
    control.suspend(stack.data_dir, "schema-registry")
    try:
        bench.client.resume(name)
        until(bench, "the letters", lambda: len(letters_of(bench, topic)) >= 60)
    finally:
        control.resume(stack.data_dir, "schema-registry")
    letters = letters_of(bench, topic)
    assert {letter.stage for letter in letters} == {"VALUE_CONVERTER"}
    assert bench.query("SELECT count(*) FROM {}", topic) == [(0,)]

    replay = dlq_replay(stack, bench.sinks[0].dead_letter_topic, "--origin", topic)
    said, errors = replay.communicate(timeout=120)
    assert replay.returncode == 0, errors
    assert f"{len(letters)} sent back" in said
    until(bench, "the rows", lambda: bench.query("SELECT count(*) FROM {}", topic) == [(60,)])


def test_a_replay_killed_on_its_way_sends_nothing_twice(
    stack: StackEndpoints, unique: Callable[[str], str]
) -> None:
    topic, count = unique("trades-replayed"), 4_000
    kafka = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
    cluster = KafkaCluster(kafka, "test")
    topics = [topic_configuration(n, TopicSettings()) for n in (topic, f"{topic}-dlq")]
    cluster.create_topics(topics)
    error = ValueError("wrong")
    with RecordWriter(kafka, Metrics(), "test") as writer:
        for number in range(count):
            headers = error_headers(error, "decode", Origin(topic, number % 4, number, 1))
            writer.produce(f"{topic}-dlq", str(number).encode(), key=b"k", headers=headers)
    try:
        # Killed before it has sent anything, and right behind transactions of its own.
        for lines in (0, 1, 600):
            process = dlq_replay(stack, topic)
            assert process.stdout is not None
            assert process.stderr is not None
            if lines == 0:
                process.stderr.readline()
            for _ in range(lines):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        last = dlq_replay(stack, topic)
        said, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
        assert int(said.splitlines()[-1].split(", ")[1].split()[0]) >= 600
        with TopicReader(kafka) as reader:
            found = list(reader.read(reader.spans([topic])))
        assert sorted(int(record.value or b"") for record in found) == list(range(count))
    finally:
        cluster.delete_topics([topic, f"{topic}-dlq"])
