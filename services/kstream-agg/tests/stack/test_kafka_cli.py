"""`topics`, `groups`, `producer` and `consumer` on three brokers, as scripts call them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kstream_agg.cli.main import cli
from kstream_agg.core.errors import ContractError, KStreamError
from kstream_agg.kafka import Record, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.kafka import KafkaCluster

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("brokers")]


def run(*arguments: str, text: str = "", code: int = 0) -> str:
    done = CliRunner().invoke(cli, arguments, input=text)
    if isinstance(done.exception, KStreamError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_topics_are_made_listed_described_altered_and_deleted(unique: Callable[[str], str]) -> None:
    name = unique("cli")
    arguments = ("topics", "create", name, "--partitions", "3", "--config", "retention.ms=60000")
    assert run(*arguments) == f"topic {name} is made\n"
    assert run(*arguments) == f"topic {name} is there already\n"
    with pytest.raises(ContractError, match="partitions 3 instead of 4"):
        run("topics", "create", name, "--partitions", "4")
    for listing in (run("topics"), run("topics", "list")):
        (line,) = [line for line in listing.splitlines() if name in line]
        assert line.split()[3] == "3"
    run("topics", "alter", name, "--partitions", "4", "--config", "retention.ms=")
    described = run("topics", "describe", name)
    assert "retention.ms=604800000" in described
    assert sum(line.startswith("│") for line in described.splitlines()) == 4
    rows = [line.split("│") for line in described.splitlines() if line.startswith("│")]
    assert [sorted(row[3].strip().split(", ")) for row in rows] == 4 * [["1", "2", "3"]]
    assert "aborted" in run("topics", "delete", name, text="n\n", code=1).lower()
    assert run("topics", "delete", name, "--yes") == f"topic {name} is deleted\n"
    with pytest.raises(ContractError, match="there is no topic"):
        run("topics", "describe", name)


def test_what_cannot_be_meant_is_a_usage_error(topic: str) -> None:
    assert "nothing to change" in run("topics", "alter", topic, code=2)
    assert "name=value" in run("topics", "alter", topic, "--config", "x", code=2)
    said = run("consumer", "poll", topic, "--from", "2026-08-01", code=2)
    assert "time with its zone" in said


def test_records_are_sent_and_polled(topic: str) -> None:
    assert run("producer", "send", topic, "one", "--key", "k").startswith(f"{topic}/")
    sent = run("producer", "send", topic, "--key", "k", text="two\nthree\n")
    assert sent == "2 records are acknowledged\n"
    found = run("consumer", "poll", topic, "--from", "earliest", "--count", "3")
    assert [line.split(" ", 1)[1] for line in found.splitlines()] == ["k one", "k two", "k three"]
    run("consumer", "poll", topic, "--timeout", "0.2", code=1)
    said = run("consumer", "subscribe", topic, "--from", "earliest", "--count", "2")
    assert len(said.splitlines()) == 2


def test_a_group_polls_is_described_moved_and_forgotten(
    topic: str, three: KafkaCluster, unique: Callable[[str], str]
) -> None:
    group = unique("cli-group")
    with three.writer_for_partition(TopicPartition(topic, 1)) as writer:
        for number in range(4):
            writer.produce(Record(b"%d" % number))
    poll = ("consumer", "poll", topic, "--group", group, "--from", "earliest", "--timeout", "30")
    assert [line.split()[-1] for line in run(*poll, "--count", "2").splitlines()] == ["0", "1"]
    assert run(*poll, "--count", "1").split()[-1] == "2"
    assert "1 behind in all" in run("groups", "lag", group)
    assert group in run("groups")
    assert f"{group} is empty" in run("groups", "describe", group)
    with pytest.raises(ContractError, match="has no offset 1"):
        run("groups", "reset", group, topic, "--to", "1")
    assert "4 behind in all" in run("groups", "reset", group, topic, "--to", "earliest")
    assert run("consumer", "leave-group", group) == f"group {group} is gone\n"
    with pytest.raises(ContractError, match="there is no group"):
        run("groups", "lag", group)


def test_scripts_keep_a_subscription_in_a_group(
    topic: str, three: KafkaCluster, unique: Callable[[str], str]
) -> None:
    group = unique("cli-group")
    with pytest.raises(ContractError, match="is subscribed to nothing"):
        run("consumer", "poll", "--group", group)
    assert "name topics" in run("consumer", "poll", code=2)
    run("producer", "send", topic, "before")
    said = run("consumer", "join-group", group, topic)
    assert said == f"group {group} is subscribed to {topic}\n"
    # Nobody reads, and nothing is missed, in partitions that are added meanwhile neither.
    run("producer", "send", topic, "after")
    three.alter_topic(topic, partitions=4)
    with three.writer_for_partition(TopicPartition(topic, 3)) as writer:
        writer.produce_and_flush(Record(b"added"))
    poll = ("consumer", "poll", "--group", group, "--timeout", "30", "--count", "1")
    found = [run(*poll), run(*poll)]
    assert sorted(line.split()[-1] for line in found) == ["added", "after"]
    run("producer", "send", topic, "passed over")
    said = run("consumer", "unsubscribe", topic, "--group", group)
    assert said == f"group {group} is subscribed to nothing\n"
    run("consumer", "join-group", group, topic)
    run("producer", "send", topic, "new")
    said = run("consumer", "subscribe", "--group", group, "--count", "1")
    assert said.split()[-1] == "new"
    assert run("consumer", "leave-group", group) == f"group {group} is gone\n"


def test_a_producers_lines_come_from_a_script(unique: Callable[[str], str]) -> None:
    topic = unique("scripted")
    said = run(
        "producer",
        text=f"add-topic {topic} 2\nsend {topic} 'two words' k # a comment\n\n"
        f"send {topic} x k\nremove-topic {topic}\nhelp\nquit\nnot read\n",
    )
    lines = said.splitlines()
    assert lines[0] == f"topic {topic} is made"
    assert lines[1].startswith(f"{topic}/")
    assert lines[2] == lines[1][:-1] + "1"
    assert lines[3] == f"topic {topic} is removed"
    assert "send a record" in said
    with pytest.raises(KStreamError, match="there is no 'sned'"):
        run("producer", text="sned\n")
    with pytest.raises(KStreamError, match="send TOPIC VALUE"):
        run("producer", text="send x\n")


def test_a_consumers_lines_come_from_a_script(topic: str, unique: Callable[[str], str]) -> None:
    run("producer", "send", topic, "before")
    said = run(
        "consumer",
        text=f"subscribe {topic}\npoll 0.1\njoin-group {unique('scripted')}\npoll 3\n"
        f"leave-group\nunsubscribe {topic}\nquit\n",
    )
    assert f"subscribed to {topic}, from what comes now" in said
    # A new subscription begins with what comes after it.
    assert "before" not in said
    assert f"0 records; assigned: {topic}/0, {topic}/1, {topic}/2" in said
    assert "subscribed to nothing" in said
    with pytest.raises(ContractError, match="nothing is subscribed to"):
        run("consumer", text="poll\n")
    with pytest.raises(ContractError, match="is in no group"):
        run("consumer", text="leave-group\n")
