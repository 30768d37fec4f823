"""The Kafka brokers: nodes that are controllers too (KRaft), one or several."""

from __future__ import annotations

import base64
import os
import subprocess
import uuid
from importlib import resources
from typing import TYPE_CHECKING

from kstream_agg.core.errors import StackError
from kstream_agg.stack.component import Component
from kstream_agg.stack.java import class_path, java_command, plain_environment
from kstream_agg.stack.layout import make_private
from kstream_agg.stack.ports import broker_ports
from kstream_agg.stack.probes import kafka_probe
from kstream_agg.stack.properties import format_properties

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.context import StackContext
    from kstream_agg.stack.layout import Layout

__all__ = ["broker_name", "kafka_components", "log_configuration"]


def broker_name(number: int) -> str:
    """The component that is the broker with this number: `kafka`, `kafka-2`, `kafka-3`, …"""  # noqa: D415 - an ellipsis ends it
    return "kafka" if number == 1 else f"kafka-{number}"


def kafka_components(context: StackContext) -> list[Component]:
    """The brokers; topics are never made by a client's mere mention.

    They start side by side, and end so: the last one alone would wait for a quorum.
    """
    return [_broker(context, number) for number in range(1, context.brokers + 1)]


def _broker(context: StackContext, number: int) -> Component:
    ports = broker_ports(context.ports, number)
    home = context.layout.home(broker_name(number))
    jars = class_path(context.cache.files("kafka"))
    properties = home / "server.properties"

    def prepare() -> None:
        make_private(home)
        properties.write_text(_server_properties(context, number, home / "data"), encoding="ascii")
        log_configuration(home)
        if not (home / "data" / "meta.properties").exists():
            _format(jars, properties, _cluster_id(context.layout))

    suffix = "" if number == 1 else f"_{number}"
    return Component(
        name=broker_name(number),
        argv=java_command(
            context.memory.kafka_mb,
            f"-Dlog4j2.configurationFile={home / 'log4j2.yaml'}",
            "-cp",
            jars,
            "kafka.Kafka",
            str(properties),
        ),
        probe=kafka_probe(ports.clients),
        env=plain_environment(),
        cwd=context.layout.folder,
        ports={f"kafka{suffix}": ports.clients, f"kafka{suffix}_controller": ports.controller},
        prepare=prepare,
        stop_timeout_s=30,
        stop_group=3,
        address=f"127.0.0.1:{ports.clients}",
    )


def log_configuration(home: Path) -> None:
    """Write the log4j configuration that Kafka and Connect share: to standard output."""
    text = resources.files("kstream_agg.stack").joinpath("log4j2.yaml").read_text("utf-8")
    (home / "log4j2.yaml").write_text(text, encoding="utf-8")


def _server_properties(context: StackContext, number: int, data: Path) -> str:
    ports = broker_ports(context.ports, number)
    replicas = min(3, context.brokers)
    in_sync = min(2, replicas)
    values: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": number,
        # A fixed quorum: the folder then survives a change of ports, and a node that has lost its
        # data comes back under its old number.
        "controller.quorum.voters": ",".join(
            f"{node}@127.0.0.1:{broker_ports(context.ports, node).controller}"
            for node in range(1, context.brokers + 1)
        ),
        "listeners": (
            f"PLAINTEXT://127.0.0.1:{ports.clients},CONTROLLER://127.0.0.1:{ports.controller}"
        ),
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports.clients}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        # 50 partitions of offsets and of transactions cost seconds and files on one machine.
        "offsets.topic.num.partitions": 8,
        "transaction.state.log.num.partitions": 8,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": 0,
        # A stack that stood still for months must find its consumers' offsets again.
        "offsets.retention.minutes": 60 * 24 * 365,
        # A killed broker reads unflushed segments again at its start: small ones bound that.
        "log.segment.bytes": 256 << 20,
        "num.recovery.threads.per.data.dir": 2,
    }
    if context.brokers > 1:
        # A broker that was killed leads partitions until its session ends, and when it was the
        # controller another one has to be elected before: both together took 10 s with sessions of
        # 5 s. Shorter ones end on a machine that is merely busy.
        values |= {"broker.session.timeout.ms": 3000, "broker.heartbeat.interval.ms": 500}
    return format_properties(values)


def _cluster_id(layout: Layout) -> str:
    """The id of the folder's cluster: whoever comes first makes it, all others take it."""
    path = layout.cluster_id
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    new.write_text(_known_cluster_id(layout) or _new_cluster_id(), encoding="ascii")
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink()
    return path.read_text(encoding="ascii")


def _new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _known_cluster_id(layout: Layout) -> str | None:
    """The id in a broker's data, where it was formatted before the folder kept it."""
    for path in sorted(layout.folder.glob("kafka*/data/meta.properties")):
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition("=")
            if key == "cluster.id":
                return value
    return None


def _format(jars: str, properties: Path, cluster: str) -> None:
    command = java_command(128, "-cp", jars, "kafka.tools.StorageTool", "format")
    done = subprocess.run(
        # In one word: an id that begins with a dash would be taken for an option.
        [*command, f"--cluster-id={cluster}", "-c", str(properties)],
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise StackError(f"Kafka's storage cannot be formatted: {' '.join(last)}")
