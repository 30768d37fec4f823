"""Kafka Connect: one distributed worker with the JDBC sink and the Avro converter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.stack.component import Component
from kstream_agg.stack.components.kafka import log_configuration
from kstream_agg.stack.java import class_path, java_command, plain_environment
from kstream_agg.stack.layout import make_private
from kstream_agg.stack.probes import http_probe
from kstream_agg.stack.properties import format_properties
from kstream_agg.stack.unpack import plugin_folders

if TYPE_CHECKING:
    from kstream_agg.stack.context import StackContext

__all__ = ["connect_component", "connect_url"]


def connect_url(port: int) -> str:
    """The address of Connect's REST API."""
    return f"http://127.0.0.1:{port}"


def connect_component(context: StackContext) -> Component:
    """The worker; ready when it lists its connectors, long after its port is open."""
    port = context.ports.connect
    home = context.layout.home("connect")
    properties = home / "connect.properties"

    def prepare() -> None:
        make_private(home)
        properties.write_text(_properties(context), encoding="ascii")
        log_configuration(home)

    return Component(
        name="connect",
        argv=java_command(
            context.memory.connect_mb,
            # Both compilers: with the first alone the sinks write half as many rows a second.
            "-XX:TieredStopAtLevel=4",
            f"-Dlog4j2.configurationFile={home / 'log4j2.yaml'}",
            "-cp",
            class_path(context.cache.files("kafka")),
            "org.apache.kafka.connect.cli.ConnectDistributed",
            str(properties),
        ),
        probe=http_probe(port, "/connectors"),
        # The sinks write timestamps in the JVM's zone: it must be UTC, whatever the user's is.
        env=plain_environment(),
        cwd=context.layout.folder,
        ports={"connect": port},
        # A sink that starts with records waiting and no registry takes them all for undecodable:
        # good records would go to the dead-letter topic.
        depends_on=("kafka", "schema-registry"),
        prepare=prepare,
        stop_timeout_s=30,
        stop_group=1,
        address=connect_url(port),
    )


def _properties(context: StackContext) -> str:
    values: dict[str, object] = {
        "bootstrap.servers": context.bootstrap_servers,
        "group.id": "connect",
        "listeners": connect_url(context.ports.connect),
        "rest.advertised.host.name": "127.0.0.1",
        "plugin.path": ",".join(map(str, plugin_folders(context.cache))),
        # Both plugins have manifests (the converter's is written when it is unpacked): no jar has
        # to be scanned.
        "plugin.discovery": "service_load",
        "connector.client.config.override.policy": "All",
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "config.storage.topic": "connect-configs",
        "config.storage.replication.factor": 1,
        "offset.storage.topic": "connect-offsets",
        "offset.storage.replication.factor": 1,
        "offset.storage.partitions": 1,
        "status.storage.topic": "connect-status",
        "status.storage.replication.factor": 1,
        "status.storage.partitions": 1,
        # There is no second worker to wait for.
        "scheduled.rebalance.max.delay.ms": 0,
        "offset.flush.interval.ms": 5000,
    }
    return format_properties(values)
