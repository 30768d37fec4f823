from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import httpx2
import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kstream_agg.core.errors import StackError
from kstream_agg.stack import control
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.download import Fetcher
from kstream_agg.stack.process import end_processes
from kstream_agg.stack.profiles import artifact_groups, select_names
from kstream_agg.stack.settings import (
    ArtifactSettings,
    PortSettings,
    RestartSettings,
    StackSettings,
)
from kstream_agg.stack.state import is_alive
from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kstream_agg.stack.state import ProcessId, StackStatus

# Starting and ending five servers a few times, on two busy cores.
pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def own() -> Iterator[LocalStack]:
    """A stack that these tests may hurt; started with a repository that nobody serves."""
    cache = ArtifactCache()
    cache.ensure(artifact_groups(select_names("base")), Fetcher())
    with open_folder("kstream-own-") as folder:
        ports = LocalStack(folder).settings.ports
        settings = StackSettings(
            ports=PortSettings(**ports.model_dump()),
            restart=RestartSettings(backoff_initial_s=0.5),
            artifacts=ArtifactSettings(repository="http://127.0.0.1:1"),
        )
        with LocalStack(folder / "data", settings=settings) as stack:
            yield stack


def processes(status: StackStatus) -> list[ProcessId]:
    found = [c.process for c in status.components if c.process]
    return [*found, *([status.supervisor] if status.supervisor else [])]


def command(own: LocalStack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kstream_agg", *arguments, "--data-dir", str(own.data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def database(own: LocalStack) -> psycopg.Connection:
    found = own.endpoints
    password = found.postgres_password_file.read_text(encoding="ascii")
    return psycopg.connect(
        f"host=127.0.0.1 port={found.postgres_port} user=kstream dbname=raw",
        password=password,
        autocommit=True,
    )


class Written(NamedTuple):
    schema_id: int
    rows: list[tuple[int, str]]
    records: list[bytes | None]


def write_something(own: LocalStack, name: str) -> None:
    """A schema, rows and records, each acknowledged."""
    schema = '{"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}'
    url = f"{own.endpoints.registry_url}/subjects/{name}-value/versions"
    httpx2.post(url, json={"schema": schema}, timeout=60).raise_for_status()
    with database(own) as connection:
        connection.execute("CREATE TABLE kept (id int PRIMARY KEY, at text)")
        connection.execute("INSERT INTO kept VALUES (1, 'one'), (2, 'two')")
    bootstrap: dict[str, str | int | float | bool] = {
        "bootstrap.servers": own.endpoints.bootstrap_servers
    }
    client = AdminClient(bootstrap)
    client.create_topics([NewTopic(name, 1, 1)])[name].result(timeout=20)
    producer = Producer(bootstrap)
    for number in range(100):
        producer.produce(name, str(number).encode())
    assert producer.flush(20) == 0


def read_back(own: LocalStack, name: str) -> Written:
    url = f"{own.endpoints.registry_url}/subjects/{name}-value/versions/latest"
    schema_id = httpx2.get(url, timeout=60).raise_for_status().json()["id"]
    with database(own) as connection:
        rows = connection.execute("SELECT id, at FROM kept ORDER BY id").fetchall()
    consumer = Consumer(
        {"bootstrap.servers": own.endpoints.bootstrap_servers, "group.id": f"{name}-reader"}
    )
    try:
        consumer.assign([TopicPartition(name, 0, 0)])
        records = [message.value() for message in consumer.consume(100, timeout=30)]
    finally:
        consumer.close()
    return Written(schema_id, rows, records)


def test_starts_offline_and_is_healthy(own: LocalStack) -> None:
    status = own.status()
    assert status.is_healthy
    assert [c.name for c in status.components] == list(select_names("base"))
    done = command(own, "stack", "status")
    assert done.returncode == 0, done.stderr
    assert "schema-registry" in done.stdout


def test_second_start_is_refused_by_name(own: LocalStack) -> None:
    with pytest.raises(StackError, match="already runs"):
        control.up(own.data_dir, own.plan)
    done = command(own, "stack", "up")
    assert done.returncode == 1
    assert f"the base stack on {own.data_dir} already runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_same_ports_on_another_folder_are_refused_by_name(own: LocalStack) -> None:
    other = LocalStack(own.data_dir.parent / "other", settings=own.settings)
    with pytest.raises(StackError) as caught:
        control.up(other.data_dir, other.plan)
    port = own.settings.ports.kafka
    assert f"port {port} of kafka ([ports] kafka) is taken by java (pid" in str(caught.value)


def test_everything_listens_on_loopback_only(own: LocalStack) -> None:
    status = own.status()
    roots = [psutil.Process(process.pid) for process in processes(status)]
    every = {p.pid for root in roots for p in (root, *root.children(recursive=True))}
    listening = [
        connection.laddr
        for connection in psutil.net_connections(kind="inet")
        if connection.pid in every and connection.status == psutil.CONN_LISTEN
    ]
    wanted = {port for c in status.components for port in c.ports.values()}
    assert {address.port for address in listening if address} >= wanted
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {address.ip for address in listening if address} <= loopback


def test_registry_demands_backward_compatibility(own: LocalStack) -> None:
    answer = httpx2.get(f"{own.endpoints.registry_url}/config", timeout=60)
    assert answer.json() == {"compatibilityLevel": "BACKWARD"}


def test_topics_are_not_made_by_mention(own: LocalStack) -> None:
    client = AdminClient({"bootstrap.servers": own.endpoints.bootstrap_servers})
    client.list_topics("never-made", timeout=10)
    assert "never-made" not in client.list_topics(timeout=10).topics


def test_connect_knows_its_plugins(own: LocalStack) -> None:
    url = f"{own.endpoints.connect_url}/connector-plugins?connectorsOnly=false"
    classes = {plugin["class"] for plugin in httpx2.get(url, timeout=60).json()}
    assert "io.debezium.connector.jdbc.JdbcSinkConnector" in classes
    assert "io.apicurio.registry.utils.converter.AvroConverter" in classes


def test_database_is_in_utc_and_asks_for_the_password(own: LocalStack) -> None:
    with database(own) as connection:
        zone = connection.execute("SHOW timezone").fetchone()
        version = connection.execute("SHOW server_version").fetchone()
    assert zone == ("UTC",)
    assert version is not None
    assert str(version[0]).startswith("18")
    assert own.endpoints.postgres_password_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(
            f"host=127.0.0.1 port={own.endpoints.postgres_port} user=kstream dbname=raw",
            password="wrong",
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="the user is changed only when it is root")
def test_postgres_runs_under_another_user(own: LocalStack) -> None:
    process = own.status().component("postgres").process
    assert process is not None
    assert psutil.Process(process.pid).uids().effective != 0


def test_killed_component_is_started_again_and_status_says_so(own: LocalStack) -> None:
    before = own.status().component("zipkin")
    assert before.process is not None
    seen: list[str] = []
    os.kill(before.process.pid, signal.SIGKILL)

    def watch(status: StackStatus) -> None:
        component = status.component("zipkin")
        seen.append(f"{component.state} {component.detail}")

    # Its death is seen first, so that ready means ready again.
    while "backoff ended by SIGKILL" not in seen:
        watch(own.status())
    control.wait_ready(own.data_dir, timeout_s=120, watch=watch)
    after = own.status().component("zipkin")
    assert after.restarts == before.restarts + 1
    assert after.process != before.process


def test_suspended_component_is_away_until_it_is_resumed(own: LocalStack) -> None:
    control.suspend(own.data_dir, "postgres")
    assert own.status().component("postgres").state == "stopped"
    assert command(own, "stack", "status").returncode == 1
    with pytest.raises(psycopg.OperationalError):
        database(own)
    control.resume(own.data_dir, "postgres")
    with database(own) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_unknown_component_is_named(own: LocalStack) -> None:
    done = command(own, "stack", "logs", "kafak")
    assert done.returncode == 1
    assert "no component 'kafak'" in done.stderr
    assert command(own, "stack", "logs", "kafka", "-n", "3").stdout.count("\n") == 3


def test_down_leaves_no_process_and_up_finds_every_write(own: LocalStack) -> None:
    write_something(own, "kept")
    written = read_back(own, "kept")
    assert len(written.records) == 100
    before = processes(own.status())
    done = command(own, "stack", "down")
    assert done.returncode == 0, done.stderr
    assert "killed" not in done.stderr
    assert [process for process in before if is_alive(process)] == []
    assert not own.status().is_running
    assert command(own, "stack", "status").returncode == 1

    own.start()
    assert read_back(own, "kept") == written


def test_nothing_lingers_when_the_supervisor_is_killed(own: LocalStack) -> None:
    status = own.status()
    assert status.supervisor is not None
    os.kill(status.supervisor.pid, signal.SIGKILL)
    if sys.platform == "linux":
        left = [psutil.Process(p.pid) for p in processes(status) if is_alive(p)]
        psutil.wait_procs(left, timeout=30)
        assert [process for process in processes(status) if is_alive(process)] == []
    assert not own.status().is_running
    # The state file of the dead supervisor is stale now: the next start takes no notice of it.
    own.start()
    assert own.status().is_healthy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's checkouts can be closed to Postgres")
def test_postgres_runs_in_a_folder_that_only_root_may_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    stack = LocalStack(closed / "data", only=("postgres",))
    try:
        with stack:
            assert stack.status().is_healthy
    finally:
        end_processes(processes(stack.status()), timeout_s=10)
        shutil.rmtree(closed)


def test_broker_keeps_its_data_in_a_folder_whose_name_is_not_ascii(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LC_ALL", "LANG"):  # as a container has them
        monkeypatch.setenv(name, "C")
    with open_folder("kstream-name-") as folder:
        stack = LocalStack(folder / "né à" / "b\\c", only=("kafka",))
        with stack:
            bootstrap = stack.endpoints.bootstrap_servers
            client = AdminClient({"bootstrap.servers": bootstrap})
            client.create_topics([NewTopic("here", 1, 1)])["here"].result(timeout=20)
        assert [path.name for path in folder.iterdir()] == ["né à"]
        assert (stack.data_dir / "kafka" / "data" / "here-0").is_dir()
        assert list(stack.data_dir.parent.iterdir()) == [stack.data_dir]
