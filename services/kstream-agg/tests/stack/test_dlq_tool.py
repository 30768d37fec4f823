"""`kstream-agg dlq` on the real Kafka: letters of ours and of Connect's, sent back exactly once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from kstream_agg.cli import tools
from kstream_agg.cli.dlq import dlq
from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import KafkaSettings, RegistrySettings, TopicSettings
from kstream_agg.kafka.cluster import KafkaCluster, topic_configuration
from kstream_agg.kafka.dlq import Origin, error_headers
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.topic_reader import Record, TopicReader
from kstream_agg.kafka.wire import RecordEncoder
from kstream_agg.kafka.writer import RecordWriter
from kstream_agg.verify.testing import trade_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _here(stack: StackEndpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run in this process: eleven starts of Python would take the longest."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tools, "configure_logging", lambda *_: None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dlq, list(arguments))


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = run("list", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def records(stack: StackEndpoints, topic: str) -> list[Record]:
    with TopicReader(KafkaSettings(bootstrap_servers=stack.bootstrap_servers)) as reader:
        return list(reader.read(reader.spans([topic])))


class Box:
    """A topic and its dead letters: ours (a good trade, broken bytes), Connect's, a frame, and
    the good trade once more: two groups have refused it."""

    def __init__(self, stack: StackEndpoints, topic: str) -> None:
        self.topic, self.letters = topic, f"{topic}-dlq"
        kafka = KafkaSettings(bootstrap_servers=stack.bootstrap_servers)
        settings = TopicSettings()
        self.cluster = KafkaCluster(kafka, "test")
        self.cluster.create_topics(
            [
                topic_configuration(self.topic, settings, partitions=3),
                topic_configuration(self.letters, settings, partitions=1),
            ]
        )
        with SchemaRegistry(RegistrySettings(url=stack.registry_url)) as registry:
            encoder = RecordEncoder(RAW_TRADE, registry.register_value(topic, RAW_TRADE))
        self.trade = encoder.encode(trade_record("T", 1, 1_760_000_000_123))
        error = InvalidRecordError("bytes are left over", stage="decode")
        trace = [("traceparent", b"00-1-2-01")]
        with RecordWriter(kafka, Metrics(), "test") as writer:
            for offset, value in ((7, self.trade), (8, b"\xff broken")):
                headers = [*trace, *error_headers(error, "decode", Origin(topic, 2, offset, 1))]
                writer.produce(self.letters, value, key=b"T", headers=headers)
            connect = {
                "topic": topic,
                "partition": "1",
                "offset": "9",
                "stage": "VALUE_CONVERTER",
                "exception.class.name": "org.apache.kafka.connect.errors.DataException",
                "exception.message": "no registry",
            }
            of_connect = [(f"__connect.errors.{k}", v.encode()) for k, v in connect.items()]
            writer.produce(self.letters, self.trade, key=b"T", headers=[*trace, *of_connect])
            writer.produce(self.letters, b"{}", headers=error_headers(error, "decode"))
            again = error_headers(error, "decode", Origin(topic, 2, 7, 1))
            writer.produce(self.letters, self.trade, key=b"T", headers=again)


@pytest.fixture
def box(stack: StackEndpoints, unique: Callable[[str], str]) -> Iterator[Box]:
    made = Box(stack, unique("trades-box"))
    yield made
    made.cluster.delete_topics([made.topic, made.letters])


def test_letters_are_listed_chosen_and_shown(box: Box) -> None:
    found = listed(box.topic)
    stages = [x["stage"] for x in found]
    assert stages == ["decode", "decode", "VALUE_CONVERTER", "decode", "decode"]
    assert found[0]["origin"] == {
        "topic": box.topic, "partition": 2, "offset": 7, "timestamp": 1
    }  # fmt: skip
    assert found[2]["message"] == "no registry"
    assert found[3]["origin"] is None
    chosen = listed(f"{box.letters}/0/1-", "--origin", box.topic, "--error", "DataException")
    assert [x["place"] for x in chosen] == [f"{box.letters}/0/2"]
    assert listed(box.topic, "--until", found[0]["at"]) == []

    shown = json.loads(run("show", f"{box.topic}/0/0").stdout)
    assert shown["record"]["instrument_name"] == "T"
    assert ["traceparent", "00-1-2-01"] in shown["headers"]
    assert "base64" in json.loads(run("show", f"{box.topic}/0/1").stdout)


def test_letters_are_sent_back_once_and_the_mended_one_too(
    stack: StackEndpoints, box: Box, tmp_path: Path
) -> None:
    refused = run("replay", f"{box.topic}/0/3", "--yes")
    assert "does not say which topic" in str(refused.exception)
    assert run("replay", f"{box.topic}/0/0-2", "--dry-run").exit_code == 0
    assert records(stack, box.topic) == []

    good = ("replay", f"{box.letters}/0/0", f"{box.letters}/0/2", "--yes")
    first = run(*good)
    assert first.exit_code == 0, first.output
    again = run(*good)
    assert "0 sent back, 2 were before" in again.stdout
    twin = run("replay", f"{box.letters}/0/4", "--yes")
    assert "0 sent back, 1 were before" in twin.stdout

    fields = tmp_path / "mended.json"
    fields.write_text(json.dumps(trade_record("T", 2, 1_760_000_000_123)))
    mended = ("replay", f"{box.letters}/0/1", "--record-file", str(fields), "--yes")
    assert "(mended)" in run(*mended).stdout
    assert "1 were before" in run(*mended).stdout

    back = {record.headers[-1][1]: record for record in records(stack, box.topic)}
    assert len(back) == len(records(stack, box.topic)) == 3
    ours = back[f"{box.letters}/0/0".encode()]
    assert (ours.part.partition, ours.key, ours.value) == (2, b"T", box.trade)
    assert ours.headers[:-1] == [("traceparent", b"00-1-2-01")]
    assert back[f"{box.letters}/0/2".encode()].part.partition == 1
    audits = listed(box.topic)[1]["replays"]
    assert [audit["mended"] for audit in audits] == [True]
    assert audits[0]["to"].startswith(f"{box.topic}/2/")
