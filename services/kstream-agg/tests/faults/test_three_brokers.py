"""Three brokers, one killed again and again under load: nothing acknowledged is ever missing."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kstream_agg.cli.main import cli
from kstream_agg.core.errors import KStreamError, StackError
from kstream_agg.kafka import KafkaCluster, Record, TopicConfiguration
from kstream_agg.stack import control
from kstream_agg.stack.brokers import Watcher
from kstream_agg.stack.ports import free_block, free_ports

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from kstream_agg.stack.testing import LocalCluster

CHECKOUT = Path(__file__).resolve().parents[4]
WRITES_PER_S = 5_000
TICK_S = 0.02
DEADLINE_S = 180.0


class Load:
    """Numbered records at a steady rate, acks=all, and how long none was acknowledged."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._cluster = KafkaCluster(bootstrap_servers, "load")
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self.failure: KStreamError | None = None
        self.written = 0
        self.acknowledged = 0
        self.longest_gap_s = 0.0

    def _run(self) -> None:
        try:
            with self._cluster.writer(self._topic) as writer:
                last = time.monotonic()
                while not self._stop.wait(TICK_S):
                    for _ in range(round(WRITES_PER_S * TICK_S)):
                        writer.produce(Record(b"%d" % self.written, key=b"%d" % self.written))
                        self.written += 1
                    now, delivered = time.monotonic(), writer.poll()
                    if delivered > self.acknowledged:
                        self.longest_gap_s = max(self.longest_gap_s, now - last)
                        last, self.acknowledged = now, delivered
                writer.flush()
                self.acknowledged = writer.delivered
        except KStreamError as error:
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


# The first of the module: the brokers that it starts and ends are not to run beside the others'.
@pytest.mark.faults
@pytest.mark.timeout(400)
def test_the_tutorial_says_what_happens(own_ports: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    environment = {
        **os.environ,
        **own_ports,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "KSTREAM__DATA_DIR": str(folder),
        "KSTREAM_STACK_DIR": str(folder),
        "KSTREAM_CONFIG_DIR": str(CHECKOUT / "config"),
    }
    seen = []
    try:
        for commands, expected in tutorial():
            done = subprocess.run(
                ["sh", "-c", commands],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=DEADLINE_S,
            )
            assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
            if expected is not None:
                assert like(expected).fullmatch(done.stdout), f"{commands}\n{done.stdout}"
                seen.append(expected)
        ended = control.read_status(folder)
        assert [each.process for each in ended.components] == [None, None, None]
    finally:
        control.down(folder)
    assert len(seen) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.fixture
def own_ports() -> dict[str, str]:
    kafka, controller = free_ports(2)
    ports = {"KAFKA": kafka, "KAFKA_CONTROLLER": controller, "KAFKA_MORE": free_block(4)}
    return {f"KSTREAM__PORTS__{name}": str(port) for name, port in ports.items()}


def tutorial() -> list[tuple[str, str | None]]:
    """The tutorial's blocks of commands with the output shown behind each."""
    text = (CHECKOUT / "docs" / "tutorial.md").read_text("utf-8")
    blocks = re.findall(
        r"^```sh\n(.*?)^```\n(?:\n^```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE
    )
    # The checkout's own environment is another one here.
    path = "PATH=$PWD/.venv/bin:$PATH\n"
    assert blocks[0][0].startswith(path)
    return [(block.removeprefix(path), shown or None) for block, shown in blocks]


def like(shown: str) -> re.Pattern[str]:
    """What a shown output stands for: `#` is any number."""
    return re.compile(re.escape(shown).replace(r"\#", r"\d+"))


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(5, marks=[pytest.mark.faults, pytest.mark.timeout(400)]),
        pytest.param(30, marks=[pytest.mark.soak, pytest.mark.timeout(2400)]),
    ],
)
def test_nothing_acknowledged_is_lost_however_often_a_broker_is_killed(
    local_cluster: LocalCluster, unique: Callable[[str], str], rounds: int
) -> None:
    brokers, topic = local_cluster.brokers, unique("kills")
    local_cluster.kafka.create_topics(
        [TopicConfiguration(topic, 6, 3, {"min.insync.replicas": "2"})]
    )
    said: list[str] = []
    watcher = Watcher(brokers, 2.0, said.append)
    gaps = []
    with Load(local_cluster.bootstrap_servers, topic) as load:
        for number in range(rounds):
            reached = load.acknowledged + WRITES_PER_S
            wait_for(lambda reached=reached: load.acknowledged > reached, "the load")  # type: ignore[misc]  # a default binds it
            controller = brokers.status().controller or 1
            # The controller, and one that is not; every third one comes back without its data.
            victim = controller if number % 2 == 0 else controller % 3 + 1
            load.longest_gap_s = 0.0
            brokers.kill(victim)
            if number % 3 == 2:
                brokers.lose_data(victim)
            wait_for(lambda: watcher.look(replace=True).is_whole, "; ".join(said))
            gaps.append(load.longest_gap_s)
    assert load.failure is None
    assert load.acknowledged == load.written
    assert sum("is started anew on its data" in line for line in said) == rounds - rounds // 3
    assert sum("on an empty log" in line for line in said) == rounds // 3
    print(f"{load.written} writes, longest interruptions (s): {[round(g, 1) for g in gaps]}")  # noqa: T201 - figures to be read
    assert differences(local_cluster, topic, load.written) == ""


def differences(cluster: LocalCluster, topic: str, written: int) -> str:
    """What is missing, twice there or out of order; empty when nothing is."""
    seen: defaultdict[int, list[int]] = defaultdict(list)
    with cluster.kafka.reader(topic, start="earliest") as reader:
        for record in reader.until_end():
            seen[record.partition].append(int(record.raw or b""))
    found = sorted(itertools.chain.from_iterable(seen.values()))
    said = []
    if found != list(range(written)):
        missing = set(range(written)) - set(found)
        said.append(f"{len(missing)} missing, {len(found) - len(set(found))} twice")
    said += [f"partition {n} out of order" for n, each in seen.items() if each != sorted(each)]
    return "; ".join(said)


@pytest.mark.faults
def test_a_broker_that_lost_its_data_is_filled_from_the_others(local_cluster: LocalCluster) -> None:
    local_cluster.kafka.create_topics([TopicConfiguration("refilled", 3, 3)])
    with local_cluster.kafka.writer("refilled") as writer:
        for number in range(1000):
            writer.produce(Record(b"%d" % number))
    said = CliRunner()
    folder = ("--data-dir", str(local_cluster.data_dir))
    killed = said.invoke(cli, ["cluster", "kill", "kafka-3", "--lose-data", *folder])
    assert "the data of broker 3 is gone" in killed.output
    wait_for(lambda: local_cluster.kafka.describe().under_replicated, "it is missed")
    shown = said.invoke(cli, ["cluster", "status", *folder])
    assert shown.exit_code == 1
    assert "under-replicated" in shown.output
    started = said.invoke(cli, ["cluster", "start", "3", *folder])
    assert started.output == "broker 3 is ready\n"
    local_cluster.brokers.wait_whole()
    shown = said.invoke(cli, ["cluster", "status", *folder])
    assert shown.exit_code == 0
    assert shown.output.count("(controller)") == 1
    with pytest.raises(StackError, match="no broker 4"):
        local_cluster.brokers.kill(4)
    assert differences(local_cluster, "refilled", 1000) == ""
