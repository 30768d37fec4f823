"""The connectors' files, the tables of the schemas, and Connect's answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import httpx2
import pytest
from pydantic import SecretStr

from kstream_agg.core.errors import ContractError, SettingsError, UnavailableError
from kstream_agg.core.names import table_name
from kstream_agg.core.settings import PostgresSettings, RegistrySettings, config_dir
from kstream_agg.sinks.connect_api import ConnectClient
from kstream_agg.sinks.connectors import load_sinks, placeholders
from kstream_agg.sinks.definition import read_definition, render, table_routes
from kstream_agg.sinks.settings import (
    AggregatorView,
    ToolSettings,
    WindowView,
    native_registry_url,
)
from kstream_agg.sinks.tables import average_table, raw_table

if TYPE_CHECKING:
    from pathlib import Path

VALUES = {"topics": "a,b", "postgres_password": "hush"}


def write(folder: Path, text: str) -> Path:
    path = folder / "sink.json"
    path.write_text(text, encoding="utf-8")
    return path


def definition_text(**config: object) -> str:
    return json.dumps({"name": "sink", "config": config})


def test_placeholders_are_filled_and_connects_own_left_alone(tmp_path: Path) -> None:
    text = definition_text(
        topics="${topics}", both="${topics}/${topics}", theirs="${file:/a:b}", n=5, on=True
    )
    config = render(read_definition(write(tmp_path, text)), VALUES, [])
    assert config["topics"] == "a,b"
    assert config["both"] == "a,b/a,b"
    assert config["theirs"] == "${file:/a:b}"
    assert (config["n"], config["on"], config["name"]) == ("5", "true", "sink")


def test_an_unknown_placeholder_is_named_with_key_and_file_but_no_secret(tmp_path: Path) -> None:
    path = write(tmp_path, definition_text(**{"connection.url": "${postgres_host}"}))
    with pytest.raises(SettingsError) as caught:
        render(read_definition(path), VALUES, [])
    assert str(caught.value) == (
        f"{path}: config.connection.url uses the unknown placeholder ${{postgres_host}}"
    )
    assert caught.value.remedy == "known ones: ${postgres_password}, ${topics}"
    assert "hush" not in f"{caught.value}{caught.value.remedy}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold"),
        ('{"name": "x"}', "must hold"),
        ('{"name": "", "config": {}}', "name must be a text"),
        ('{"name": "x", "config": []}', "config must be an object"),
        ('{"name": "x", "config": {"a": null}}', "config.a must be a text"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=re.escape(str(path)) + ".*" + message):
        read_definition(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.json does not exist"):
        read_definition(tmp_path / "nowhere.json")


def test_each_topic_is_routed_to_its_table_behind_the_files_transforms() -> None:
    topics = ["trades-option-btc-ewma-5min", "trades-a.b"]
    routes = table_routes(topics, "mine, theirs")
    assert routes["transforms"] == "mine,theirs,table0,table1"
    for number, topic in enumerate(topics):
        pattern = routes[f"transforms.table{number}.regex"]
        # RegexRouter replaces a topic only where the whole of it matches.
        assert [bool(re.fullmatch(pattern, name)) for name in (topic, "trades-aXb")] == [
            True,
            False,
        ]
        assert routes[f"transforms.table{number}.replacement"] == table_name(topic)


def test_the_shipped_files_read_committed_and_know_their_keys() -> None:
    view = AggregatorView(channels=("trades.option.BTC.100ms", "trades.future.BTC.100ms"))
    settings = ToolSettings(postgres=PostgresSettings(password=SecretStr("hush")))
    for sink in load_sinks(view, config_dir()):
        config = render(sink.definition, placeholders(sink, settings), sink.topics)
        assert config["topics"].split(",") == list(sink.topics)
        assert config["primary.key.fields"].split(",") == list(sink.tables[0].key)
        assert config["consumer.override.group.id"] == config["name"] == sink.name
        assert config["consumer.override.isolation.level"] == "read_committed"
        assert config["errors.deadletterqueue.topic.name"] == f"{sink.name}-dlq"
        # Faster, and loses milliseconds.
        assert "dialect.postgres.unnest.insert.enabled" not in config


def test_the_channel_moves_topics_and_tables() -> None:
    view = AggregatorView(channels=("trades.future.BTC.100ms",))
    raw, averages = load_sinks(view, config_dir())
    assert (raw.topics, raw.tables[0].name) == (("trades-future-btc",), "trades_future_btc")
    assert averages.topics == ("trades-future-btc-ewma-5min",)
    assert averages.tables[0].name == "trades_future_btc_ewma_5min"
    windows = WindowView(periods=(60, 3_600), advance=30)
    several = AggregatorView(channels=("trades.future.BTC.100ms",), window=windows)
    _, averages = load_sinks(several, config_dir())
    assert averages.topics == (
        "trades-future-btc-ewma-1min-by-30s",
        "trades-future-btc-ewma-1h-by-30s",
    )


def test_a_missing_password_is_a_clear_error() -> None:
    sink, _ = load_sinks(AggregatorView(), config_dir())
    with pytest.raises(SettingsError, match="need Postgres' password"):
        placeholders(sink, ToolSettings())


def test_columns_follow_the_schemas() -> None:
    raw = {column.name: column for column in raw_table("trades-x").columns}
    assert raw["timestamp"].sql_type == "timestamptz(3)"
    assert raw["starbase_match_id"].sql_type == "bigint"
    assert raw["price"].sql_type == "double precision"
    assert raw["instrument_name"].sql_type == "text"
    assert [name for name in ("trade_seq", "price", "iv", "extra") if raw[name].nullable] == [
        "iv",
        "extra",
    ]
    averages = average_table("trades-x-ewma-5min")
    assert [column.name for column in averages.columns if column.nullable] == [
        "vwap",
        "seed_weight",
        "tau",
    ]
    assert averages.key == ("instrument_name", "window_start")


def test_the_registrys_own_api_stands_beside_its_confluent_one() -> None:
    registry = RegistrySettings(url="https://r.example:8/apis/ccompat/v7")
    assert native_registry_url(registry) == "https://r.example:8/apis/registry/v2"


@pytest.mark.parametrize(("text", "seconds"), [("2", 2.0), ("0.5", 0.5), ("1min", 60.0), (3, 3.0)])
def test_windows_are_read_as_the_aggregator_reads_them(text: object, seconds: float) -> None:
    view = AggregatorView.model_validate({"window": {"grace": text, "idle_timeout": 1}})
    assert view.window.grace == seconds


def client_answering(answer: httpx2.Response) -> ConnectClient:
    client = ConnectClient("http://connect.example", 1.0)
    client._http.close()
    transport = httpx2.MockTransport(lambda _: answer)
    client._http = httpx2.Client(base_url="http://connect.example", transport=transport)
    return client


def test_a_failed_task_tells_its_last_cause() -> None:
    trace = (
        "org.X: outer\n\tat a.b(C)\nCaused by: y.Z: middle\n\tat d\nCaused by: the cause\n\tat e"
    )
    body = {
        "name": "s",
        "connector": {"state": "RUNNING"},
        "tasks": [{"id": 0, "state": "RUNNING"}, {"id": 1, "state": "FAILED", "trace": trace}],
    }
    with client_answering(httpx2.Response(200, json=body)) as client:
        status = client.status("s")
    assert (status.is_running, status.has_failed) == (False, True)
    assert status.failure == "the cause"


def test_an_absent_connector_does_not_run() -> None:
    with client_answering(httpx2.Response(404, json={"message": "not found"})) as client:
        status = client.status("s")
        assert client.config("s") is None
    assert (status.state, status.is_running) == ("ABSENT", False)


def test_a_connector_without_tasks_does_not_run() -> None:
    body = {"name": "s", "connector": {"state": "RUNNING"}, "tasks": []}
    with client_answering(httpx2.Response(200, json=body)) as client:
        assert not client.status("s").is_running


def test_a_refused_configuration_says_why_and_a_rebalance_can_be_tried_again() -> None:
    refused = httpx2.Response(400, json={"error_code": 400, "message": "invalid\nbatch.size"})
    with (
        client_answering(refused) as client,
        pytest.raises(ContractError, match=r"invalid batch\.size"),
    ):
        client.put_config("s", {})
    with (
        client_answering(httpx2.Response(409, json={"message": "rebalance"})) as client,
        pytest.raises(UnavailableError, match="rebalance"),
    ):
        client.put_config("s", {})
