"""Three brokers and two Connect workers: `make test-compose ARGS='-m cluster'`.

Alone, for it wants the memory of two stacks. A broker and a worker end; trades go on, and all of
them are there in the end.
"""

from __future__ import annotations

import json
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:
    from containers import Compose

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BROKERS = ("kafka", "kafka-2", "kafka-3")
SINKS = 4
KEYS = "SELECT instrument_name, trade_seq FROM trades_btc_perpetual"


def copies(cluster: Compose) -> set[tuple[int, int]]:
    """How many copies partitions have, and how many are in sync, as the brokers that live tell."""
    running = [name for name in BROKERS if cluster.containers(name)[0].state == "running"]
    servers = ",".join(f"127.0.0.1:{cluster.port(name, 9092)}" for name in running)
    topics = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=30).topics
    assert {"trades-btc-perpetual", "kafkasql-journal", "connect-configs"} <= set(topics)
    assert "__consumer_offsets" in topics
    return {
        (len(each.replicas), len(each.isrs))
        for topic in topics.values()
        for each in topic.partitions.values()
    }


def workers(cluster: Compose) -> set[str]:
    """The Connect workers that sinks' tasks run on."""
    url = f"http://127.0.0.1:{cluster.port('connect', 8083)}/connectors?expand=status"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = json.load(answer)
    return {task["worker_id"] for each in found.values() for task in each["status"]["tasks"]}


def test_every_topic_has_three_copies_and_two_workers_share_the_sinks(cluster: Compose) -> None:
    cluster.until_new_rows()
    assert len(workers(cluster)) == 2
    cluster.until("all copies in sync", lambda: copies(cluster) == {(3, 3)})
    assert "all equal" in cluster.cli("verify", "--wait")


def test_trades_go_on_without_a_broker_and_a_worker(cluster: Compose) -> None:
    before = set(cluster.rows(KEYS))
    # For good: what Docker is told to kill it does not start again.
    cluster("kill", "kafka-2", "connect-2")
    begin = time.monotonic()
    cluster.until_new_rows()
    cluster.measured["rows_without_a_broker_s"] = round(time.monotonic() - begin, 1)
    assert copies(cluster) == {(3, 2)}
    cluster.until(
        "all sinks on one worker",
        lambda: cluster.cli("connectors", "status", check=False).count("RUNNING") == SINKS,
    )
    assert len(workers(cluster)) == 1
    cluster.until_new_rows()
    assert "all equal" in cluster.cli("verify", "--wait")
    assert before <= set(cluster.rows(KEYS))


def test_the_broker_catches_up_and_the_first_one_may_go(cluster: Compose) -> None:
    cluster("start", "kafka-2", "connect-2")
    begin = time.monotonic()
    cluster.until("all copies in sync", lambda: copies(cluster) == {(3, 3)})
    cluster.measured["in_sync_again_s"] = round(time.monotonic() - begin, 1)
    # The one that every program names first.
    cluster("kill", "kafka")
    begin = time.monotonic()
    cluster.until_new_rows()
    cluster.measured["rows_without_the_first_broker_s"] = round(time.monotonic() - begin, 1)
    cluster("start", "kafka")
    cluster.until_healthy("kafka")
    assert "all equal" in cluster.cli("verify", "--wait")


def test_what_a_cluster_takes(cluster: Compose) -> None:
    names = [
        each.name
        for service in (*BROKERS, "connect", "connect-2")
        for each in cluster.containers(service)
    ]
    stats = cluster.docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *names)
    cluster.measured["memory"] = sorted(stats.splitlines())
