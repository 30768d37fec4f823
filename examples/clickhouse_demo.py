"""Any messages into ClickHouse, and two checks of what is there: make example-clickhouse.

    python examples/clickhouse_demo.py [MESSAGES]

Kafka is the running stack's, or one of the example's own. ClickHouse is the one that
KSTREAM__CLICKHOUSE__URL names, or a server that is started for as long as the example runs.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

from kstream_agg.core.errors import KStreamError
from kstream_agg.core.logs import configure_logging
from kstream_agg.core.settings import KafkaSettings, LogSettings
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration
from kstream_agg.sinks.clickhouse import ClickHouse, ClickHouseSettings
from kstream_agg.stack.clickhouse import ClickHouseServer
from kstream_agg.stack.endpoints import StackEndpoints, find_running
from kstream_agg.stack.testing import LocalStack, open_folder

TOPIC = "ingest-performance-metrics"
PARTITIONS = 4
TABLE = "kmr_consumer_ingest"
URL = "KSTREAM__CLICKHOUSE__URL"
COMMAND = [sys.executable, "-m", "kstream_agg", "batch-sink"]

CREATE = f"""CREATE TABLE IF NOT EXISTS {TABLE}
(`partition` UInt32, `offset` UInt64, `timestamp` DateTime)
ENGINE = ReplacingMergeTree ORDER BY (partition, offset)"""

MISSING = f"""SELECT partition, (max(offset) - min(offset)) + 1 AS offset_diff,
count(offset) AS occ, offset_diff - occ AS delta
FROM (SELECT DISTINCT * FROM {TABLE}) GROUP BY partition ORDER BY partition"""  # noqa: S608 - the table's name stands above

TWICE = f"""SELECT partition, offset, count() AS occ FROM {TABLE} FINAL
GROUP BY partition, offset HAVING occ > 1"""  # noqa: S608 - the same


@contextlib.contextmanager
def kafka(folder: Path) -> Iterator[StackEndpoints]:
    """The running stack's, or one of our own."""
    running = find_running()
    if running is not None:
        yield running
        return
    print("no stack runs: starting a Kafka for this example", flush=True)
    with LocalStack(folder / "stack", only=("kafka",)) as stack:
        yield stack.endpoints


@contextlib.contextmanager
def clickhouse(folder: Path) -> Iterator[str]:
    """The address of the one that is named, or of one of our own."""
    named = os.environ.get(URL)
    if named:
        yield named
        return
    with ClickHouseServer(folder / "clickhouse") as server:
        yield server.url


def send(settings: KafkaSettings, count: int) -> None:
    """Any messages will do."""
    KafkaCluster(settings, "example").create_topics([TopicConfiguration(TOPIC, PARTITIONS)])
    producer = Producer(settings.client_config())
    for number in range(count):
        producer.produce(TOPIC, secrets.token_bytes(number % 100), partition=number % PARTITIONS)
        producer.poll(0)
    producer.flush()


def wait_until_taken(settings: KafkaSettings, group: str, sink: subprocess.Popen[bytes]) -> None:
    """Return once the sink has committed everything."""
    consumer = Consumer(settings.client_config() | {"group.id": group})
    parts = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    ends = [consumer.get_watermark_offsets(part, timeout=30)[1] for part in parts]
    deadline = time.monotonic() + 120
    while [part.offset for part in consumer.committed(parts, timeout=30)] != ends:
        if sink.poll() is not None or time.monotonic() > deadline:
            sys.exit("the sink has not taken everything")
        time.sleep(0.1)
    consumer.close()


def main(count: int) -> int:
    """Send, sink and check; the check's exit code."""
    configure_logging(LogSettings(level="warning"), "example")
    with open_folder() as folder, kafka(folder) as stack, clickhouse(folder) as url:
        settings = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
        send(settings, count)
        # A server of our own begins empty: then all there is has to be read.
        group = "example-clickhouse" if URL in os.environ else f"example-clickhouse-{os.getpid()}"
        environment = {
            **os.environ,
            **stack.environment,
            URL: url,
            "KSTREAM__SINK__GROUP_ID": group,
            "KSTREAM__SINK__TOPICS": TOPIC,
            "KSTREAM__SINK__VALUES": "raw",
            "KSTREAM__SINK__TABLE": TABLE,
            "KSTREAM__SINK__BATCH_COUNT": "128",
            "KSTREAM__SINK__BATCH_SECONDS": "4",
            "KSTREAM__LOG__LEVEL": "warning",
        }
        with ClickHouse(ClickHouseSettings(url=url)) as client:
            client.execute(CREATE)
            sink = subprocess.Popen(COMMAND, env=environment)
            try:
                wait_until_taken(settings, group, sink)
            finally:
                sink.terminate()
                sink.wait()
            print(f"ClickHouse {client.features().version}, {TABLE}: messages missing?")
            for row in client.rows(MISSING):
                print("  partition {}: {} offsets, {} there, delta {}".format(*row))
            twice = client.rows(TWICE)
            print("double writes?", twice or "none", flush=True)
        return subprocess.run([*COMMAND, "check"], env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
    except KStreamError as error:
        sys.exit(f"error: {error}\nremedy: {error.remedy or 'none is known'}")
