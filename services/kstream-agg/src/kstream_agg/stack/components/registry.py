"""The schema registry: Apicurio with its Confluent-compatible API, its journal kept in Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from kstream_agg.core.errors import UnavailableError
from kstream_agg.stack.component import Component
from kstream_agg.stack.java import java_command, plain_environment
from kstream_agg.stack.probes import http_probe
from kstream_agg.stack.unpack import registry_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kstream_agg.stack.context import StackContext

__all__ = ["create_journal", "demand_compatibility", "registry_component", "registry_url"]

_API = "/apis/ccompat/v7"
_JOURNAL = "kafkasql-journal"


def registry_url(port: int) -> str:
    """The address of the Confluent-compatible API."""
    return f"http://127.0.0.1:{port}{_API}"


def registry_component(context: StackContext) -> Component:
    """The registry; BACKWARD is its global compatibility before anyone can register."""
    ports = context.ports
    url = registry_url(ports.registry)
    bootstrap = context.bootstrap_servers
    return Component(
        name="schema-registry",
        argv=java_command(
            context.memory.registry_mb,
            "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={ports.registry}",
            "-Dquarkus.management.host=127.0.0.1",
            f"-Dquarkus.management.port={ports.registry_management}",
            "-Dapicurio.storage.kind=kafkasql",
            f"-Dapicurio.kafkasql.bootstrap.servers={bootstrap}",
            f"-Dapicurio.kafkasql.topic={_JOURNAL}",
            # It waits so long for snapshots and old journals that are not there, four times.
            "-Dapicurio.kafkasql.consumer.poll.timeout=1000",
            "-Dquarkus.http.access-log.enabled=false",
            '-Dquarkus.log.category."org.apache.kafka".level=WARN',
            "-jar",
            str(registry_folder(context.cache) / "quarkus-run.jar"),
        ),
        probe=http_probe(ports.registry, f"{_API}/subjects"),
        env=plain_environment(),
        cwd=context.layout.folder,
        ports={
            "registry": ports.registry,
            "registry_management": ports.registry_management,
        },
        depends_on=("kafka",),
        prepare=lambda: create_journal({"bootstrap.servers": bootstrap}),
        initialise=lambda: demand_compatibility(url),
        stop_group=2,
        address=url,
    )


def create_journal(
    client_config: Mapping[str, str | int | float | bool], replication_factor: int = 1
) -> None:
    """Make the journal's topic: one partition keeps its order, and nothing of it may ever expire.

    Args:
        client_config: How to reach Kafka, as librdkafka's properties.
        replication_factor: On how many brokers it stands.

    Raises:
        UnavailableError: Kafka does not make it.
    """
    topic = NewTopic(
        _JOURNAL,
        num_partitions=1,
        replication_factor=replication_factor,
        config={"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    )
    try:
        with AdminClient({**client_config, "log_level": 0}) as client:
            client.create_topics([topic], request_timeout=10)[_JOURNAL].result(timeout=15)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise UnavailableError(
                f"the registry's journal topic cannot be made: {error.args[0].str()}"
            ) from error


def demand_compatibility(url: str) -> None:
    """Make BACKWARD the registry's global compatibility.

    Args:
        url: Its Confluent-compatible API.

    Raises:
        UnavailableError: It does not take it.
    """
    try:
        answer = httpx2.put(
            f"{url}/config", json={"compatibility": "BACKWARD"}, timeout=10, trust_env=False
        )
        answer.raise_for_status()
    except httpx2.HTTPError as error:
        raise UnavailableError(
            f"the registry's compatibility cannot be set to BACKWARD: {error}"
        ) from error
