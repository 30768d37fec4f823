"""The Kafka broker: one node that is controller too (KRaft)."""

from __future__ import annotations

import base64
import subprocess
import uuid
from importlib import resources
from typing import TYPE_CHECKING

from kstream_agg.core.errors import StackError
from kstream_agg.stack.component import Component
from kstream_agg.stack.java import class_path, java_command, plain_environment
from kstream_agg.stack.layout import make_private
from kstream_agg.stack.probes import kafka_probe
from kstream_agg.stack.properties import format_properties

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.context import StackContext

__all__ = ["kafka_component", "log_configuration"]


def kafka_component(context: StackContext) -> Component:
    """The broker; topics are never made by a client's mere mention."""
    ports = context.ports
    home = context.layout.home("kafka")
    jars = class_path(context.cache.files("kafka"))
    properties = home / "server.properties"

    def prepare() -> None:
        make_private(home)
        properties.write_text(_server_properties(context, home / "data"), encoding="ascii")
        log_configuration(home)
        if not (home / "data" / "meta.properties").exists():
            _format(jars, properties)

    return Component(
        name="kafka",
        argv=java_command(
            context.memory.kafka_mb,
            f"-Dlog4j2.configurationFile={home / 'log4j2.yaml'}",
            "-cp",
            jars,
            "kafka.Kafka",
            str(properties),
        ),
        probe=kafka_probe(ports.kafka),
        env=plain_environment(),
        cwd=context.layout.folder,
        ports={"kafka": ports.kafka, "kafka_controller": ports.kafka_controller},
        prepare=prepare,
        stop_timeout_s=30,
        stop_group=3,
        address=f"127.0.0.1:{ports.kafka}",
    )


def log_configuration(home: Path) -> None:
    """Write the log4j configuration that Kafka and Connect share: to standard output."""
    text = resources.files("kstream_agg.stack").joinpath("log4j2.yaml").read_text("utf-8")
    (home / "log4j2.yaml").write_text(text, encoding="utf-8")


def _server_properties(context: StackContext, data: Path) -> str:
    ports = context.ports
    values: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        # A fixed quorum: the folder then survives a change of ports.
        "controller.quorum.voters": f"1@127.0.0.1:{ports.kafka_controller}",
        "listeners": (
            f"PLAINTEXT://127.0.0.1:{ports.kafka},CONTROLLER://127.0.0.1:{ports.kafka_controller}"
        ),
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports.kafka}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        # 50 partitions of offsets and of transactions cost seconds and files on one broker.
        "offsets.topic.num.partitions": 8,
        "transaction.state.log.num.partitions": 8,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A stack that stood still for months must find its consumers' offsets again.
        "offsets.retention.minutes": 60 * 24 * 365,
        # A killed broker reads unflushed segments again at its start: small ones bound that.
        "log.segment.bytes": 256 << 20,
        "num.recovery.threads.per.data.dir": 2,
    }
    return format_properties(values)


def _format(jars: str, properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = java_command(128, "-cp", jars, "kafka.tools.StorageTool", "format", "-t", cluster)
    done = subprocess.run(
        [*command, "-c", str(properties)],
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise StackError(f"Kafka's storage cannot be formatted: {' '.join(last)}")
