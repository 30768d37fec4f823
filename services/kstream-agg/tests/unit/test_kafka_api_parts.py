"""The parts of the Kafka API that need no broker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from kstream_agg.core.errors import ContractError, InvalidRecordError, UnavailableError
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka import (
    AvroCodec,
    JsonCodec,
    KafkaCluster,
    MessagePackCodec,
    TextCodec,
    TopicConfiguration,
    TopicDescription,
)
from kstream_agg.kafka.awaiting import awaitable
from kstream_agg.kafka.brokers import broker_settings
from kstream_agg.kafka.failures import kafka_failure, no_such_topic
from kstream_agg.kafka.topics import differences


def test_brokers_are_named_by_text_sequence_settings_or_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KAFKA_BROKERS", raising=False)
    assert broker_settings().bootstrap_servers == "127.0.0.1:9092"
    monkeypatch.setenv("KAFKA_BROKERS", "a:1,b:2")
    assert broker_settings().bootstrap_servers == "a:1,b:2"
    assert broker_settings("c:3").bootstrap_servers == "c:3"
    assert broker_settings(["c:3", "d:4"]).bootstrap_servers == "c:3,d:4"
    settings = KafkaSettings(bootstrap_servers="e:5")
    assert broker_settings(settings) is settings


def test_a_property_librdkafka_refuses_is_one_sentence() -> None:
    wrong = KafkaSettings(properties={"no.such.property": "1"})
    with pytest.raises(ContractError, match=r"no\.such\.property"):
        KafkaCluster(wrong)


@pytest.mark.parametrize("codec", [JsonCodec[Any](), MessagePackCodec[Any]()])
def test_json_and_message_pack_give_back_what_they_took(codec: JsonCodec[Any]) -> None:
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    assert codec.decode(codec.encode(value, "t"), "t") == value
    with pytest.raises(InvalidRecordError, match="'t'") as caught:
        codec.encode(object(), "t")
    assert caught.value.stage == "encode"
    with pytest.raises(InvalidRecordError, match="'t'") as caught:
        codec.decode(b"\xc1", "t")
    assert caught.value.stage == "decode"


def test_a_codec_checks_the_type_it_was_given() -> None:
    with pytest.raises(InvalidRecordError, match="int"):
        JsonCodec[int](int).decode(b'"text"', "t")


def test_texts_are_utf_8() -> None:
    assert TextCodec().decode(TextCodec().encode("grün", "t"), "t") == "grün"
    with pytest.raises(InvalidRecordError, match="'t'"):
        TextCodec().decode(b"\xff", "t")


class Registry:
    """Knows one schema."""

    def __init__(self) -> None:
        self.registered: list[str] = []

    def register_value(self, topic: str, schema: dict[str, Any]) -> int:
        self.registered.append(topic)
        self.schema = schema
        return 7

    def schema_by_id(self, schema_id: int) -> dict[str, Any] | None:
        return self.schema if schema_id == 7 else None


def test_avro_is_registered_once_a_topic_and_read_without_a_schema() -> None:
    registry: Any = Registry()
    field = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}
    codec = AvroCodec(registry, {"type": "record", "name": "R", "fields": [field]})
    value = {"at": datetime(2026, 1, 1, tzinfo=UTC)}
    encoded = [codec.encode(value, topic) for topic in ("a", "a", "b")]
    assert registry.registered == ["a", "b"]
    reader = AvroCodec(registry)
    assert [reader.decode(data, "a") for data in encoded] == [value] * 3
    with pytest.raises(InvalidRecordError, match="no schema to write"):
        reader.encode(value, "a")


def test_differences_are_listed_each_in_a_phrase() -> None:
    wanted = TopicConfiguration("t", 3, 2, {"cleanup.policy": "delete,compact", "x": "1"})
    same = TopicDescription("t", 3, 2)
    config = {"cleanup.policy": "compact,delete", "x": "1", "y": "2"}
    assert differences(wanted, same, config) == []
    other = TopicDescription("t", 1, 1)
    assert differences(wanted, other, {"cleanup.policy": "delete"}) == [
        "partitions 1 instead of 3",
        "replication factor 1 instead of 2",
        "cleanup.policy delete instead of delete,compact",
        "x unknown instead of 1",
    ]


def test_the_first_errors_have_a_remedy() -> None:
    for code, said in (
        (KafkaError.INCONSISTENT_GROUP_PROTOCOL, "take another group"),
        (KafkaError.MSG_SIZE_TOO_LARGE, "max.message.bytes"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "kstream-agg topics"),
        (KafkaError.INVALID_PARTITIONS, "only ever gets more"),
        (KafkaError.NOT_ENOUGH_REPLICAS, "kstream-agg cluster status"),
    ):
        failure = kafka_failure(KafkaException(KafkaError(code)), "doing it")
        assert isinstance(failure, ContractError)
        assert str(failure).startswith("doing it failed: ")
        assert said in str(failure.remedy)
    gone = kafka_failure(KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)), "doing it")
    assert isinstance(gone, UnavailableError)
    assert "KAFKA_BROKERS" in str(gone.remedy)


def test_an_unknown_topic_is_met_with_those_that_sound_like_it() -> None:
    near = no_such_topic("temperature", ["temperatures", "trades"])
    make = "make it: kstream-agg topics create"
    assert near.remedy == f"did you mean temperatures? else {make} temperature"
    assert no_such_topic("x", ["trades"]).remedy == f"{make} x"


class Doer:
    """Blocks."""

    def do(self, number: int, *, twice: bool = False) -> int:
        """Do it."""
        if number < 0:
            raise ContractError("too small")
        return number * (2 if twice else 1)

    ado = awaitable(do)


def test_a_blocking_call_is_awaited_under_its_other_name() -> None:
    assert asyncio.run(Doer().ado(21, twice=True)) == 42
    with pytest.raises(ContractError, match="too small"):
        asyncio.run(Doer().ado(-1))
    assert Doer.ado.__name__ == "ado"
