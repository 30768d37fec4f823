"""When a registry's "no such schema" is believed."""

from __future__ import annotations

import json

import pytest
from confluent_kafka.schema_registry import Schema
from confluent_kafka.schema_registry.error import SchemaRegistryError

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.schemas import RAW_TRADE
from kstream_agg.core.settings import RegistrySettings
from kstream_agg.kafka.registry import SchemaRegistry


class Client:
    """Knows some schemas; `conflict` says that another process sets the compatibility."""

    def __init__(self, *ids: int) -> None:
        self.ids = set(ids)
        self.conflict = False

    def get_schema(self, schema_id: int) -> Schema:
        if schema_id not in self.ids:
            raise SchemaRegistryError(404, 40403, "Schema not found")
        return Schema(json.dumps(RAW_TRADE), "AVRO")

    def set_compatibility(self, **_options: object) -> None:
        if self.conflict:
            raise SchemaRegistryError(409, 409, "A rule named 'COMPATIBILITY' already exists.")

    def register_schema(self, _subject: str, _schema: Schema) -> int:
        return 7

    def close(self) -> None:
        """Nothing to close."""


def registry_of(client: Client, doubt_s: float) -> SchemaRegistry:
    registry = SchemaRegistry(RegistrySettings(), doubt_s=doubt_s)
    registry._client = client  # type: ignore[assignment]  # does what of it is used
    return registry


@pytest.fixture
def client() -> Client:
    return Client(5)


def test_a_plausible_id_is_doubted_and_found_once_the_registry_has_read_it(client: Client) -> None:
    registry = registry_of(client, doubt_s=60.0)
    assert registry.schema_by_id(5) == RAW_TRADE
    with pytest.raises(UnavailableError, match="knows no schema 9 yet"):
        registry.schema_by_id(9)
    client.ids.add(9)
    assert registry.schema_by_id(9) == RAW_TRADE


def test_bytes_that_only_look_like_an_id_are_believed_to_be_none(client: Client) -> None:
    registry = registry_of(client, doubt_s=60.0)
    registry.schema_by_id(5)
    for schema_id in (0, 5_000, 2**31 - 1):
        assert registry.schema_by_id(schema_id) is None


def test_without_doubt_a_missing_schema_is_missing(client: Client) -> None:
    assert registry_of(client, doubt_s=0.0).schema_by_id(6) is None


def test_another_process_may_set_the_compatibility_at_the_same_moment(client: Client) -> None:
    client.conflict = True
    assert registry_of(client, doubt_s=0.0).register_value("t", RAW_TRADE) == 7
