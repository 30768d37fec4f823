"""A topic, a table in ClickHouse and the batch-sink between them, for the sink's tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import httpx2
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from kstream_agg.core.names import dead_letter_topic, table_name
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import KafkaSettings, TopicSettings
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.dlq import header_value, origin_from_headers
from kstream_agg.kafka.topic_reader import TopicReader
from kstream_agg.sinks.batch_sink_blocks import shape_of
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.sinks.clickhouse_tables import Inserts
from kstream_agg.verify.batch_sink import OffsetsCheck, check_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.stack.endpoints import StackEndpoints

# An upper bound for a machine that others load; nothing waits so long otherwise.
WAIT_S = 180.0
SESSION_MS = 6_000


def wait_for(condition: Callable[[], object], of: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"it does not come true: {of()}"
        time.sleep(0.05)


class Sink:
    """`kstream-agg batch-sink` in a process of its own; a context manager that ends it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kstream_agg", "batch-sink"],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(WAIT_S)

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.said.splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event.get("event") == name]

    def get(self, path: str) -> tuple[int, str]:
        port = self.events("started")[-1]["http_port"]
        answer = httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S, trust_env=False)
        return answer.status_code, answer.text

    def _end(self, how: signal.Signals) -> int:
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(how)
        try:
            return process.wait(WAIT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process is not None:
            self.stop()


@dataclass
class Faults:
    """What a `Front` does wrong."""

    refuse: int = 0
    """So many inserts are refused as a whole, as for a want of memory."""
    lose_answers: int = 0
    """Of so many inserts the answer is lost, behind their being done."""


class Front:
    """Stands before a server and passes on what it is sent; a context manager.

    Args:
        answer: Takes the request's query string, headers and body; gives status, headers, body.
    """

    def __init__(
        self, answer: Callable[[str, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]
    ) -> None:
        self.faults = faults = Faults()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                _, _, query = self.path.partition("?")
                is_insert = "INSERT" in query
                if is_insert and faults.refuse > 0:
                    faults.refuse -= 1
                    self._give(500, {}, b"Code: 241, e.displayText() = DB::Exception: Memory limit")
                    return
                status, headers, content = answer(query, dict(self.headers), body)
                if is_insert and faults.lose_answers > 0:
                    faults.lose_answers -= 1
                    self.close_connection = True
                    return
                self._give(status, headers, content)

            def _give(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # A sink that is killed leaves its connection as it is.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, name="front")
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def passing_on(url: str) -> Front:
    """A front of a real server."""

    def answer(
        query: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        kept = {name: value for name, value in headers.items() if name.startswith("X-")}
        try:
            got = httpx2.post(
                f"{url}/?{query}", content=body, headers=kept, timeout=60, trust_env=False
            )
        except httpx2.HTTPError as error:
            return 502, {}, str(error).encode()
        return got.status_code, {}, got.content

    return Front(answer)


@dataclass(frozen=True)
class DeadLetter:
    """What the dead-letter topic says of a record."""

    partition: int
    offset: int
    stage: str
    message: str


class Warehouse:
    """A topic and its table; a context manager that ends its sinks."""

    def __init__(
        self, stack: StackEndpoints, url: str, topic: str, folder: Path, *, partitions: int = 2
    ) -> None:
        self.stack, self.url, self.topic, self.group = stack, url, topic, f"{topic}-group"
        self.table = table_name(topic)
        self._folder = folder
        self._partitions = partitions
        self.kafka = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
        self.client = ClickHouse(ClickHouseSettings(url=url))
        configuration = topic_configuration(topic, TopicSettings(), partitions=partitions)
        KafkaCluster(self.kafka, "test").create_topics([configuration])
        self.producer = Producer(self.kafka.client_config() | {"linger.ms": 5})
        self._consumer = Consumer(self.kafka.client_config() | {"group.id": self.group})
        self._admin = AdminClient(self.kafka.client_config())
        self._sinks: list[Sink] = []
        self.logs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for sink in self._sinks:
            if sink.process is not None:
                sink.kill()
        self._consumer.close()
        self.client.__exit__(None, None, None)

    # --- Kafka -----------------------------------------------------------------------------

    def send(
        self, value: bytes | None, key: bytes | None = None, partition: int | None = None
    ) -> None:
        while True:
            try:
                if partition is None:
                    self.producer.produce(self.topic, value, key)
                else:
                    self.producer.produce(self.topic, value, key, partition=partition)
            except BufferError:
                self.producer.poll(0.1)
            else:
                return

    def sent(self) -> None:
        assert self.producer.flush(WAIT_S) == 0

    def is_taken(self) -> bool:
        """Whether the group has committed everything."""
        parts = [TopicPartition(self.topic, number) for number in range(self._partitions)]
        found = self._consumer.committed(parts, timeout=30)
        ends = [self._consumer.get_watermark_offsets(item, timeout=30)[1] for item in found]
        return [max(0, item.offset) for item in found] == ends

    def taken(self) -> int:
        """How many offsets the group has committed."""
        parts = [TopicPartition(self.topic, number) for number in range(self._partitions)]
        return sum(max(0, item.offset) for item in self._consumer.committed(parts, timeout=30))

    def members(self) -> int:
        """Members of the group that have partitions."""
        found = self._admin.describe_consumer_groups([self.group])[self.group].result()
        return sum(bool(member.assignment.topic_partitions) for member in found.members)

    def dead_letters(self) -> list[DeadLetter]:
        with TopicReader(self.kafka) as reader:
            records = list(reader.read(reader.spans([dead_letter_topic(self.topic)])))
        found = []
        for record in records:
            origin = origin_from_headers(record.headers)
            assert origin is not None
            stage = header_value(record.headers, "error.stage") or ""
            message = header_value(record.headers, "error.message") or ""
            found.append(DeadLetter(origin.partition, origin.offset, stage, message))
        return sorted(found, key=lambda letter: (letter.partition, letter.offset))

    # --- the sink --------------------------------------------------------------------------

    def environment(self, **changes: str) -> dict[str, str]:
        names = {
            "SINK__TOPICS": self.topic,
            "SINK__GROUP_ID": self.group,
            "CLICKHOUSE__URL": self.url,
            "PIPELINE__COMMIT_INTERVAL_S": "0.2",
            "SINK__BATCH_SECONDS": "0.2",
            "KAFKA__PROPERTIES": json.dumps({"session.timeout.ms": SESSION_MS}),
            "LOG__FORMAT": "json",
        }
        names |= {name.upper(): value for name, value in changes.items()}
        return {
            **os.environ,
            **self.stack.environment,
            **{f"KSTREAM__{name}": value for name, value in names.items()},
        }

    def sink(self, **changes: str) -> Sink:
        self.logs += 1
        made = Sink(self.environment(**changes), self._folder / f"sink-{self.logs}.log")
        self._sinks.append(made)
        return made

    def run_until_taken(self, **changes: str) -> Sink:
        with self.sink(**changes) as sink:
            wait_for(self.is_taken, lambda: sink.said)
            assert sink.stop() == 0
        return sink

    def check(self) -> OffsetsCheck:
        """What `kstream-agg batch-sink check` finds."""
        with TopicReader(self.kafka) as reader:
            reports = check_topic(self.client, reader, self.topic, self.table, self.group)
        return OffsetsCheck(tuple(reports))

    def command_check(self, **changes: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and partitions of the command itself."""
        done = subprocess.run(
            [sys.executable, "-m", "kstream_agg", "batch-sink", "check", "--json"],
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["partitions"]

    # --- the table -------------------------------------------------------------------------

    def execute(self, statement: str) -> None:
        """Run a statement; `{t}` stands for the table."""
        self.client.execute(statement.replace("{t}", self.table))

    def rows(self, query: str) -> list[list[Any]]:
        """The rows of a query; `{t}` stands for the table."""
        return self.client.rows(query.replace("{t}", self.table))

    def count(self, *, final: bool = True) -> int:
        return int(self.rows(f"SELECT count() FROM {{t}} {'FINAL' if final else ''}")[0][0])


def make_table(warehouse: Warehouse) -> None:
    """The table of trades, as the sink would make it."""
    shape = shape_of(RAW_TRADE)
    Inserts(warehouse.client, warehouse.table, shape, create=True).prepare([])


def trades(count: int, **fields: object) -> Iterator[dict[str, Any]]:
    """Trades with every kind of column in use."""
    for number in range(1, count + 1):
        yield {
            "instrument_name": f"BTC-27MAR26-{number % 50}-C",
            "trade_seq": number,
            "trade_id": f"id-{number}",
            "timestamp": 1_790_000_000_000 + number,
            "direction": "buy",
            "price": number / 8,
            "amount": 1.5,
            "tick_direction": 1,
            "iv": None if number % 3 else 55.5,
            "block_rfq_id": None if number % 5 else number,
            "legs": None if number % 7 else "x" * (number % 300) + "ä",
            "received_at": 1_790_000_000_100 + number,
            "source": "stream",
        } | fields
