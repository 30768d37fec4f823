"""Settings: file, environment, and what a wrong one says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import (
    KafkaSettings,
    ServiceSettings,
    config_dir,
    load_settings,
    read_secret,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for service in ("raw-producer", "agg-producer"):
        (tmp_path / service).mkdir()
    return tmp_path


def write(folder: Path, service: str, text: str) -> None:
    (folder / service / "default.toml").write_text(text, encoding="utf-8")


def test_without_a_file_the_defaults_hold(folder: Path) -> None:
    settings = load_settings(ServiceSettings, "agg-producer", folder=folder)
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.raw_topics == ("trades-option-btc",)


def test_the_channel_stands_once_and_every_service_reads_it(folder: Path) -> None:
    write(folder, "raw-producer", 'channels = ["trades.future.BTC.100ms"]')
    for service in ("raw-producer", "agg-producer"):
        settings = load_settings(ServiceSettings, service, folder=folder)
        assert settings.raw_topics == ("trades-future-btc",)


def test_environment_goes_before_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "raw-producer", '[kafka]\nbootstrap_servers = "a:1"\nsasl_username = "u"')
    monkeypatch.setenv("KSTREAM__KAFKA__BOOTSTRAP_SERVERS", "b:2")
    monkeypatch.setenv("KSTREAM__CHANNELS", "trades.option.ETH.100ms, trades.ETH-PERPETUAL.agg2")
    settings = load_settings(ServiceSettings, "raw-producer", folder=folder)
    assert settings.kafka.bootstrap_servers == "b:2"
    assert settings.kafka.sasl_username == "u"
    assert settings.raw_topics == ("trades-option-eth", "trades-eth-perpetual")


def test_any_librdkafka_property_passes_through() -> None:
    settings = KafkaSettings(properties={"socket.keepalive.enable": True, "linger.ms": 50})
    config = settings.client_config()
    assert config["socket.keepalive.enable"] is True
    assert config["linger.ms"] == 50


def test_credentials_reach_the_client_and_never_a_repr(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n", encoding="utf-8")
    settings = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="me",
        sasl_password_file=secret,
    )
    assert settings.client_config()["sasl.password"] == "hunter2"
    direct = KafkaSettings.model_validate({"sasl_password": "hunter2"})
    assert "hunter2" not in repr(direct)
    assert direct.client_config()["sasl.password"] == "hunter2"


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing-here.*cannot be read"):
        read_secret(None, tmp_path / "nothing-here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kafka]\nbootstrap_server = 'x'", r"kafka.bootstrap_server .*no such setting"),
        ("[topic]\npartitions = 0", r"topic.partitions .*greater than or equal to 1"),
        ("[telemetry]\nexporter = 'jaeger'", r"telemetry.exporter .*'zipkin', 'otlp' or 'none'"),
        ("channels = []", r"channels .*at least 1"),
        ("channels = ['trades.option.BTC.1s']", r"not a trades channel.*100ms, agg2 or raw"),
        ("colour = 'red'", r"colour .*no such setting"),
        ("[kafka", r"not valid TOML"),
    ],
)
def test_a_wrong_setting_names_key_file_and_what_is_allowed(
    folder: Path, text: str, says: str
) -> None:
    write(folder, "raw-producer", text)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings(ServiceSettings, "raw-producer", folder=folder)
    assert "default.toml" in str(caught.value)


def test_a_wrong_environment_variable_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSTREAM__TOPIC__PARTITIONS", "many")
    with pytest.raises(SettingsError, match="environment variable KSTREAM__TOPIC__PARTITIONS"):
        load_settings(ServiceSettings, "raw-producer", folder=folder)


def test_config_dir_names_a_wrong_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSTREAM_CONFIG_DIR", "/no/such/folder")
    with pytest.raises(SettingsError, match="/no/such/folder"):
        config_dir()


def test_config_dir_is_found_from_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder / "config" / "raw-producer"
    below = folder / "somewhere" / "deep"
    config.mkdir(parents=True)
    below.mkdir(parents=True)
    monkeypatch.delenv("KSTREAM_CONFIG_DIR", raising=False)
    monkeypatch.chdir(below)
    assert config_dir() == folder / "config"
