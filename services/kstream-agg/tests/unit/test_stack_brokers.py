"""Several brokers: their ports, their settings, who the controller is, and the watcher."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

import pytest
from click.testing import CliRunner

from kstream_agg.cli.cluster import cluster
from kstream_agg.core.errors import StackError
from kstream_agg.kafka.topics import (
    BrokerDescription,
    ClusterDescription,
    PartitionDescription,
    TopicDescription,
)
from kstream_agg.stack.brokers import Brokers, BrokersStatus, Watcher
from kstream_agg.stack.components.kafka import broker_name
from kstream_agg.stack.control import up
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import make_plan, write_plan
from kstream_agg.stack.ports import bootstrap_servers, broker_ports
from kstream_agg.stack.quorum import parse_leader, quorum_request
from kstream_agg.stack.settings import PortSettings, StackSettings
from kstream_agg.stack.state import ComponentStatus

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.state import ComponentState


def test_each_broker_has_ports_of_its_own() -> None:
    ports = PortSettings()
    found = [port for number in range(1, 8) for port in broker_ports(ports, number)]
    assert len(set(found)) == 14
    assert bootstrap_servers(ports, 3) == "127.0.0.1:9092,127.0.0.1:9192,127.0.0.1:9194"


def test_a_folder_keeps_its_number_of_brokers(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_plan(layout.plan, make_plan("base", StackSettings(), only=("kafka",), brokers=3))
    layout.cluster_id.write_text("id", encoding="ascii")
    with pytest.raises(StackError, match="data of 3 brokers, not of 1") as caught:
        up(tmp_path, make_plan("base", StackSettings(), only=("kafka",)))
    assert "--brokers 3" in str(caught.value.remedy)


def answer(leader: int, *, error: int = 0, partition_error: int = 0) -> bytes:
    """An answer as a broker of 4.3 gives it, up to the leader's epoch."""
    topic = b"__cluster_metadata"
    head = struct.pack(">i", 1) + b"\x00" + struct.pack(">h", error)
    name = bytes([2, len(topic) + 1]) + topic
    return head + name + bytes([2]) + struct.pack(">ihii", 0, partition_error, leader, 7)


def test_the_controller_is_the_quorums_leader() -> None:
    assert parse_leader(answer(3)) == 3
    assert parse_leader(answer(-1)) is None
    assert parse_leader(answer(3, error=41)) is None
    assert parse_leader(answer(3, partition_error=6)) is None
    with pytest.raises(ValueError, match="no answer"):
        parse_leader(answer(3).replace(b"cluster", b"another"))


def test_the_request_says_its_own_size() -> None:
    request = quorum_request()
    assert struct.unpack_from(">ihh", request) == (len(request) - 4, 55, 0)


class FakeBrokers:
    """Stands for the stack: what each broker does is set by the test."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder
        self.states: dict[int, ComponentState] = {1: "ready", 2: "ready", 3: "ready"}
        self.started: list[int] = []

    def status(self) -> BrokersStatus:
        up = [n for n, state in self.states.items() if state == "ready"]
        part = PartitionDescription(0, up[0], (1, 2, 3), tuple(up))
        return BrokersStatus(
            {
                n: ComponentStatus(f"kafka-{n}", state, None, 0, "", 0, None, {}, "")
                for n, state in self.states.items()
            },
            up[0],
            ClusterDescription(
                "id",
                tuple(BrokerDescription(n, "127.0.0.1", 9000 + n) for n in up),
                (TopicDescription("t", 1, 3, (part,)),),
            ),
        )

    def start(self, number: int) -> None:
        self.started.append(number)
        self.states[number] = "ready"


def test_a_broker_is_replaced_when_it_stays_dead(tmp_path: Path) -> None:
    fake = FakeBrokers(tmp_path)
    now, said = [0.0], list[str]()
    watcher = Watcher(cast(Brokers, fake), 10.0, said.append, lambda: now[0])
    watcher.look(replace=True)
    fake.states[2] = "backoff"
    watcher.look(replace=True)
    now[0] = 9.0
    fake.states[2] = "starting"  # the supervisor has brought it back itself
    watcher.look(replace=True)
    fake.states[2] = "stopped"
    now[0] = 12.0
    watcher.look(replace=True)
    now[0] = 21.0
    watcher.look(replace=True)
    assert fake.started == []
    now[0] = 22.0
    watcher.look(replace=False)
    assert fake.started == []
    watcher.look(replace=True)
    assert fake.started == [2]
    assert watcher.look(replace=True).is_whole
    assert said == [
        "all partitions are in sync",
        "broker 2 is dead",
        "not whole: broker 2 is backoff; 1 partitions are under-replicated",
        "broker 2 is starting",
        "broker 2 is dead",
        "broker 2 is started anew on an empty log, which fills from the others",
        "broker 2 is ready",
        "all partitions are in sync",
    ]


def test_a_broker_with_data_is_started_on_it(tmp_path: Path) -> None:
    fake, said = FakeBrokers(tmp_path), list[str]()
    data = Layout(tmp_path).home(broker_name(3)) / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").touch()
    fake.states[3] = "stopped"
    Watcher(cast(Brokers, fake), 0.0, said.append).look(replace=True)
    assert "broker 3 is started anew on its data" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("up",), "-f docker-compose.cluster.yaml up --wait"),
        (("status",), "-p kstream-agg-cluster ps"),
        (("kill", "2"), "-p kstream-agg-cluster kill kafka-2"),
        (("start", "kafka"), "-p kstream-agg-cluster start kafka\n"),
        (("watch",), "-p kstream-agg-cluster events"),
        (("down",), "-p kstream-agg-cluster stop"),
    ],
)
def test_for_a_stack_in_docker_the_commands_say_what_does_the_same(
    arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACK", "docker")
    done = CliRunner().invoke(cluster, arguments)
    assert done.exit_code == 0
    assert says in done.output


def test_what_is_no_broker_is_a_usage_error() -> None:
    done = CliRunner().invoke(cluster, ["kill", "zookeeper"])
    assert done.exit_code == 2
    assert "'zookeeper' is no broker" in done.output
