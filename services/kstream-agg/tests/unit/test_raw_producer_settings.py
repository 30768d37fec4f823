"""The raw-producer's settings: each from its environment variable, wrong ones named."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kstream_agg.cli.main import cli
from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import config_dir, load_settings
from kstream_agg.deribit.settings import ExchangeSettings, RawProducerSettings

if TYPE_CHECKING:
    from pathlib import Path

CASES = {
    "url": ("ws://127.0.0.1:8790/ws/api/v2", "ws://127.0.0.1:8790/ws/api/v2", "deribit.com"),
    "heartbeat_interval_s": ("30", 30, "9"),
    "subscribe_attempts": ("5", 5, "0"),
    "connect_timeout_s": ("2.5", 2.5, "0"),
    "reconnect_min_s": ("0.5", 0.5, "0"),
    "reconnect_max_s": ("5", 5.0, "-1"),
    "compression": ("false", False, "perhaps"),
    "max_frame_bytes": ("100000", 100_000, "10"),
    "queue_trades": ("50", 50, "none"),
}


def _variable(key: str) -> str:
    return f"KSTREAM__EXCHANGE__{key.upper()}"


def test_every_setting_of_the_exchange_is_tested_here() -> None:
    assert set(CASES) == set(ExchangeSettings.model_fields)


@pytest.mark.parametrize("key", CASES)
def test_a_setting_is_read_from_its_variable(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value, _ = CASES[key]
    monkeypatch.setenv(_variable(key), text)
    settings = load_settings(RawProducerSettings, "raw-producer")
    assert getattr(settings.exchange, key) == value


@pytest.mark.parametrize("key", CASES)
def test_a_wrong_value_is_refused_with_its_place(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_variable(key), CASES[key][2])
    with pytest.raises(SettingsError, match=_variable(key)):
        load_settings(RawProducerSettings, "raw-producer")


def test_the_file_holds_the_defaults_of_the_code() -> None:
    path = config_dir() / "raw-producer" / "default.toml"
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert set(written["exchange"]) == set(ExchangeSettings.model_fields)
    from_file = load_settings(RawProducerSettings, "raw-producer")
    assert from_file == RawProducerSettings()


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "raw-producer"
    folder.mkdir()
    (folder / "default.toml").write_text("[exchange]\nurll = 'x'\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"exchange\.urll .*no such setting"):
        load_settings(RawProducerSettings, "raw-producer", folder=tmp_path)


def test_the_command_refuses_wrong_settings_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KSTREAM__CHANNELS", "trades.option.BTC")
    result = CliRunner().invoke(cli, ["raw-producer"])
    assert isinstance(result.exception, SettingsError)
    assert "'trades.option.BTC' is not a trades channel" in str(result.exception)
    assert result.exception.exit_code == 2


def test_two_intervals_of_one_channel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSTREAM__CHANNELS", "trades.option.BTC.100ms,trades.option.BTC.agg2")
    with pytest.raises(SettingsError, match=r"KSTREAM__CHANNELS.* deliver the same trades"):
        load_settings(RawProducerSettings, "raw-producer")
