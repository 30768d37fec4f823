"""Programs that run pipelines, as users start them: signals, limits, workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack

DEADLINE_S = 90.0
PROGRAMS = Path(__file__).parent / "programs"
EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


class Program:
    """A running program and what it has written."""

    def __init__(self, stack: StackEndpoints, *command: str | Path, **settings: str) -> None:
        names = {f"KSTREAM__{name.upper()}": value for name, value in settings.items()}
        environment = os.environ | {
            "KSTREAM__KAFKA__BOOTSTRAP_SERVERS": stack.bootstrap_servers,
            "KSTREAM__KAFKA__PROPERTIES": '{"session.timeout.ms": 6000}',
            "KSTREAM__LOG__FORMAT": "json",
            "KSTREAM__PIPELINE__COMMIT_INTERVAL_S": "0.1",
        }
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment | names,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=lambda: self.out.extend(self.process.stdout or ())),
            threading.Thread(target=lambda: self.err.extend(self.process.stderr or ())),
        ]
        for reader in self._readers:
            reader.start()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            said = "".join(self.err)
            assert self.process.poll() is None, f"it has ended: {said}"
            assert time.monotonic() < deadline, f"it does not come true: {said}"
            time.sleep(0.05)

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return code

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in list(self.err) if line.startswith("{")]
        return [event for event in found if event.get("event") == name]

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            for process in (psutil.Process(self.process.pid), *self.workers()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.wait()


class Topics:
    """A source of four partitions, an output and a group that only one test knows."""

    def __init__(self, stack: StackEndpoints, unique: Callable[[str], str]) -> None:
        self._settings = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
        self.source, self.out, self.group = unique("source"), unique("out"), unique("group")
        KafkaCluster(self._settings, "test").create_topics(
            [TopicConfiguration(self.source, 4), TopicConfiguration(self.out)]
        )
        self._producer = Producer(self._settings.client_config())
        self._consumer = self.consumer(self.group)
        self._reader = self.consumer(unique("reader"))
        self._reader.assign([TopicPartition(self.out, 0, 0)])
        self.results: list[int] = []

    def consumer(self, group: str) -> Consumer:
        return Consumer(
            self._settings.client_config() | {"group.id": group, "enable.auto.commit": False}
        )

    def send(self, *values: object) -> None:
        for place, value in enumerate(values):
            encoded = value if isinstance(value, bytes) else str(value).encode()
            self._producer.produce(self.source, encoded, partition=place % 4)
        assert self._producer.flush(DEADLINE_S) == 0

    def committed(self, group: str | None = None) -> int:
        consumer = self._consumer if group is None else self.consumer(group)
        found = consumer.committed(
            [TopicPartition(self.source, number) for number in range(4)], timeout=30
        )
        if group is not None:
            consumer.close()
        return sum(max(0, item.offset) for item in found)

    def is_taken(self) -> bool:
        """Whether the group has committed everything."""
        found = self._consumer.committed(
            [TopicPartition(self.source, number) for number in range(4)], timeout=30
        )
        ends = [self._consumer.get_watermark_offsets(item, timeout=30)[1] for item in found]
        return [item.offset for item in found] == ends

    def read(self) -> list[int]:
        """All results so far."""
        for message in self._reader.consume(1000, 0.05):
            if message.error() is None:
                self.results.append(int(message.value() or b""))
        return self.results

    def close(self) -> None:
        self._consumer.close()
        self._reader.close()


@pytest.fixture
def topics(stack: StackEndpoints, unique: Callable[[str], str]) -> Iterator[Topics]:
    with contextlib.closing(Topics(stack, unique)) as made:
        yield made


def forward(stack: StackEndpoints, topics: Topics, **settings: str) -> Program:
    program = PROGRAMS / "forward.py"
    return Program(stack, program, topics.source, topics.out, topics.group, **settings)


def test_the_example_prints_batches_and_tells_errors(stack: StackEndpoints, topics: Topics) -> None:
    records = [f"any {item}" for item in range(8)]
    topics.send(*records[:4], b"", b"\xff\x00", *records[4:])
    with Program(stack, EXAMPLES / "batch_and_print.py", topics.source) as program:
        program.until(lambda: len(program.out) >= 10)
        program.until(lambda: any("the record is empty" in line for line in program.err))
        program.until(lambda: topics.committed("batch-and-print") == 10)
        assert program.stop() == 0
    printed = [line for line in program.out if not line.startswith("---")]
    texts = [line.split(" ", 1)[1].strip() for line in printed]
    expected = [repr(record.encode()) for record in records] + [repr(b"\xff\x00")]
    assert sorted(texts) == sorted(expected)
    [failure] = [line for line in program.err if "the record is empty" in line]
    assert failure.startswith(
        f"{topics.source}/0/1 map parse: ValueError: the record is empty: b''"
    )


def test_an_open_batch_is_flushed_on_sigterm(stack: StackEndpoints, topics: Topics) -> None:
    topics.send("a", "b", "c")
    with Program(stack, EXAMPLES / "batch_and_print.py", topics.source) as program:
        # Behind the loop's hand-over the batch is open for 4 s.
        program.until(lambda: len(program.events("partition assigned")) == 4)
        topics.send("d")
        assert program.stop() == 0
    printed = sum(not line.startswith("---") for line in program.out)
    assert topics.committed("batch-and-print") == printed


def test_a_limit_ends_the_program_with_a_sentence_and_a_code(
    stack: StackEndpoints, topics: Topics
) -> None:
    topics.send(0, "bad")
    with forward(stack, topics) as program:
        assert program.wait() == 3
    said = "".join(program.err)
    assert "records failed and 0 are allowed" in said
    assert f"{topics.source}/1/0 map number: ValueError: invalid literal" in said
    assert "Traceback" not in said


def test_a_setting_that_is_wrong_ends_the_program_with_a_sentence(
    stack: StackEndpoints, topics: Topics
) -> None:
    with forward(stack, topics, pipeline__workers="none") as program:
        assert program.wait() == 2
    assert "KSTREAM__PIPELINE__WORKERS" in "".join(program.err)
    assert "Traceback" not in "".join(program.err)


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
def test_workers_share_a_group_and_one_that_dies_is_replaced(
    stack: StackEndpoints, topics: Topics, guarantee: str
) -> None:
    settings = {"pipeline__workers": "2", "pipeline__guarantee": guarantee}
    with forward(stack, topics, **settings) as program:
        program.until(lambda: program.events("started"))
        port = int(program.events("started")[0]["http_port"])
        program.until(lambda: get(port, "/readyz")[0] == 200)
        topics.send(*range(100))
        program.until(topics.is_taken)

        def consumed() -> dict[str, float]:
            text = get(port, "/metrics")[1]
            found = re.findall(r"kstream_records_consumed_total\{(.*)\} (\S+)", text)
            return {labels: float(value) for labels, value in found}

        assert sum(consumed().values()) == 100
        assert all(re.search(r'worker="[01]"', labels) for labels in consumed())
        program.until(lambda: len(program.events("partition assigned")) >= 4)
        victim = program.workers()[0]
        victim.kill()
        program.until(lambda: get(port, "/healthz")[0] == 503)
        topics.send(*range(100, 200))
        program.until(topics.is_taken)
        program.until(lambda: get(port, "/readyz")[0] == 200)
        workers = program.workers()
        assert victim.pid not in {process.pid for process in workers}
        assert program.stop() == 0
        assert not any(process.is_running() for process in workers)
    while len(topics.read()) < 200:
        pass
    found = Counter(topics.read())
    assert set(found) == set(range(200))
    # At least once: what the killed one had not committed may be there twice.
    assert guarantee == "at_least_once" or set(found.values()) == {1}


def test_a_limit_in_one_worker_stops_all(stack: StackEndpoints, topics: Topics) -> None:
    with forward(stack, topics, pipeline__workers="2") as program:
        topics.send(0, 1, "bad", 3)
        assert program.wait() == 3
    assert "all are stopped" in "".join(program.err)
    assert len(program.events("worker started")) == 2


def test_a_step_that_hangs_is_unhealthy_costs_no_membership_and_does_not_hold_up_the_end(
    stack: StackEndpoints, topics: Topics
) -> None:
    topics.send(*range(100))
    settings = {
        # In work for longer than a member may go without polling: it must not lose its place.
        "pipeline__stuck_after_s": "8",
        "kafka__properties": '{"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}',
        "pipeline__batch_records": "1",
        "pipeline__waiting_records": "2",
        "pipeline__stop_within_s": "0.5",
        "log__level": "debug",
    }
    program = Program(stack, PROGRAMS / "hang.py", topics.source, topics.group, **settings)
    with program:
        program.until(lambda: program.events("started"))
        port = int(program.events("started")[0]["http_port"])
        program.until(lambda: "step 'reduce 1 hang' has been in work" in get(port, "/healthz")[1])
        assert get(port, "/healthz")[0] == 503
        assert program.events("reading is paused")
        assert not program.events("partitions lost")
        assert program.stop() == 0
        assert program.events("steps are still at work, they are left behind")
    assert topics.committed() == 0


def test_workers_end_when_their_supervisor_is_killed(stack: StackEndpoints, topics: Topics) -> None:
    with forward(stack, topics, pipeline__workers="2") as program:
        program.until(lambda: len(program.events("running")) == 2)
        workers = program.workers()
        program.process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=DEADLINE_S)
        assert (len(gone), alive) == (2, [])
