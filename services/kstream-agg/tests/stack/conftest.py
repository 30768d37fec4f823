"""Three brokers, once for all modules whose verbs are shown on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kstream_agg.kafka import KafkaCluster, TopicConfiguration
from kstream_agg.stack.testing import LocalCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[LocalCluster]:
    """Three brokers; a test that kills one starts it again."""
    with LocalCluster(brokers=3) as cluster:
        yield cluster


@pytest.fixture
def brokers(local_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three brokers' addresses, for commands too."""
    # Set before, so that what the commands set is taken back too.
    monkeypatch.setenv("KSTREAM__KAFKA__BOOTSTRAP_SERVERS", "")
    monkeypatch.delenv("KSTREAM__KAFKA__BOOTSTRAP_SERVERS")
    monkeypatch.setenv("KAFKA_BROKERS", local_cluster.bootstrap_servers)
    return local_cluster.bootstrap_servers


@pytest.fixture
def three(brokers: str) -> KafkaCluster:
    """A client of the three brokers."""
    return KafkaCluster(brokers, "tests")


@pytest.fixture
def topic(three: KafkaCluster, unique: Callable[[str], str]) -> str:
    """A topic of three partitions, each on all three brokers."""
    name = unique("three")
    three.create_topics([TopicConfiguration(name, 3, 3)])
    return name
