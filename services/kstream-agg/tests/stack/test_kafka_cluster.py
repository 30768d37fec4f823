"""`cluster`: three brokers looked at, one killed, and healed by `watch`."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from records import values, write

from kstream_agg.cli.main import cli
from kstream_agg.core.errors import StackError
from kstream_agg.kafka import KafkaCluster, Record
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.components import kafka
from kstream_agg.stack.java import class_path
from kstream_agg.stack.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.testing import LocalCluster

pytestmark = pytest.mark.stack


def test_an_id_that_begins_with_a_dash_is_taken_too(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    properties = (Layout(local_cluster.data_dir).home("kafka") / "server.properties").read_text()
    name = "-" + 21 * "A"  # one of 64 begins so
    data = tmp_path / "data"
    own = tmp_path / "server.properties"
    own.write_text(re.sub(r"(?m)^log.dirs=.*$", f"log.dirs={data}", properties), "utf-8")
    kafka._format(class_path(ArtifactCache().files("kafka")), own, name)
    assert f"cluster.id={name}" in (data / "meta.properties").read_text("utf-8")


def test_a_change_is_made_when_the_last_broker_has_heard_of_it(
    local_cluster: LocalCluster, three: KafkaCluster, topic: str
) -> None:
    status = local_cluster.brokers.status()
    (late, *_) = (
        each.process for number, each in status.components.items() if number != status.controller
    )
    assert late is not None
    done = threading.Event()

    def change() -> None:
        three.alter_topic(topic, partitions=4)
        done.set()

    changing = threading.Thread(target=change)
    os.kill(late.pid, signal.SIGSTOP)
    try:
        changing.start()
        assert not done.wait(1.0)
    finally:
        os.kill(late.pid, signal.SIGCONT)
        changing.join()
    assert done.is_set()


def test_a_killed_broker_is_seen_missed_and_brought_back(
    local_cluster: LocalCluster, three: KafkaCluster, topic: str
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(
            cli, ["cluster", *arguments, "--data-dir", str(local_cluster.data_dir)]
        )
        if isinstance(done.exception, StackError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    write(three, topic, [b"before"])
    shown = run("status")
    assert shown.count("(controller)") == 1
    assert shown.count("ready") == 3
    assert shown.endswith("all partitions are in sync\n")
    with pytest.raises(StackError, match="no broker 4"):
        run("kill", "4")
    try:
        assert run("kill", "2") == "broker 2 is dead\n"
        # Led by others meanwhile: written and read on.
        with three.writer(topic) as writer:
            for number in range(30):
                writer.produce(Record(b"%d" % number, key=b"%d" % number))
        shown = run("status", code=1)
        assert "stopped" in shown
        said = run("watch", "--replace-dead", "--after", "0", "--until-whole")
    finally:
        if not local_cluster.brokers.status().is_whole:
            local_cluster.brokers.start(2)
    lines = [line.split(" ", 1)[1] for line in said.splitlines()]
    assert lines[0] == "broker 2 is dead"
    assert "broker 2 is started anew on its data" in lines
    assert lines[-1] == "all partitions are in sync"
    with three.reader(topic, start="earliest") as reader:
        found = values(reader, 31)
    assert sorted(map(bytes, filter(None, found))) == sorted(
        [b"before", *(b"%d" % number for number in range(30))]
    )
