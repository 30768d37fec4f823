"""The agg-producer's settings: file, environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kstream_agg.aggregate.rules import EwmaRules, WindowRules, Windows
from kstream_agg.aggregate.settings import AggProducerSettings
from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import load_settings

CONFIG = Path(__file__).parents[4] / "config"


def load() -> AggProducerSettings:
    return load_settings(AggProducerSettings, "agg-producer", folder=CONFIG)


def test_the_file_says_what_the_defaults_are() -> None:
    settings = load()
    assert settings == AggProducerSettings()
    assert settings.rules == WindowRules(
        families=(Windows(300_000, 300_000),),
        grace_ms=0,
        lateness_ms=2_000,
        skew_ms=60_000,
        retention_ms=172_800_000,
        ewma=EwmaRules(2 / 301),
    )
    assert settings.groups == {}


def test_the_time_decayed_form_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSTREAM__EWMA__FORM", "time")
    monkeypatch.setenv("KSTREAM__EWMA__TAU", "10min")
    monkeypatch.setenv("KSTREAM__GROUP_BY", "channel")
    monkeypatch.setenv("KSTREAM__WINDOW__PERIODS", "1min, 5min,1h")
    monkeypatch.setenv("KSTREAM__WINDOW__ADVANCE", "45s")
    settings = load()
    assert settings.rules.ewma == EwmaRules(0.0, tau_ms=600_000)
    assert settings.groups == {"trades-option-btc": "trades.option.BTC.100ms"}
    names = [family.name for family in settings.window.families]
    assert names == ["1min-by-45s", "5min-by-45s", "1h-by-45s"]


@pytest.mark.parametrize(
    ("variable", "value", "read", "wanted"),
    [
        ("WINDOW__PERIOD", "1h", "window.period", 3_600),
        ("WINDOW__PERIOD", "90", "window.period", 90),
        ("WINDOW__GRACE", "1min", "window.grace", 60.0),
        ("WINDOW__ALLOWED_LATENESS", "0.5", "window.allowed_lateness", 0.5),
        ("WINDOW__FUTURE_SKEW", "0", "window.future_skew", 0.0),
        ("WINDOW__IDLE_TIMEOUT", "10s", "window.idle_timeout", 10.0),
        ("WINDOW__PERIODS", "1min,5min", "window.periods", (60, 300)),
        ("WINDOW__ADVANCE", "1min", "window.advance", 60),
        ("WINDOW__RETENTION", "1h", "window.retention", 3_600.0),
        ("WINDOW__RETAINED_LIMIT", "10", "window.retained_limit", 10),
        ("EWMA__N", "20", "ewma.n", 20),
        ("EWMA__START", "zero", "ewma.start", "zero"),
        ("EWMA__RESET", "window", "ewma.reset", "window"),
        ("GUARANTEE", "at_least_once", "guarantee", "at_least_once"),
        ("GROUP_ID", "other", "group_id", "other"),
        ("CONSUME__BATCH_RECORDS", "500", "consume.batch_records", 500),
        ("CONSUME__COMMIT_INTERVAL_S", "0.2", "consume.commit_interval_s", 0.2),
        ("CONSUME__STUCK_AFTER_S", "5", "consume.stuck_after_s", 5.0),
    ],
)
def test_each_setting_has_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, read: str, wanted: object
) -> None:
    monkeypatch.setenv(f"KSTREAM__{variable}", value)
    found: object = load()
    for name in read.split("."):
        found = getattr(found, name)
    assert found == wanted


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("WINDOW__PERIOD", "soon", "'soon' is not a period"),
        ("WINDOW__PERIOD", "0", "greater than or equal to 1"),
        ("WINDOW__PERIOD", "0.5", "valid integer"),
        ("WINDOW__GRACE", "-1", "greater than or equal to 0"),
        ("EWMA__N", "0", "greater than or equal to 1"),
        ("EWMA__TAU", "0", "greater than 0"),
        ("WINDOW__RETENTION", "-1", "greater than or equal to 0"),
        ("GUARANTEE", "maybe", "'exactly_once' or 'at_least_once'"),
        ("GROUP_BY", "topic", "'instrument' or 'channel'"),
        ("CONSUME__BATCH_RECORDS", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"KSTREAM__{variable}", value)
    with pytest.raises(SettingsError, match=says) as caught:
        load()
    assert f"KSTREAM__{variable}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"WINDOW__PERIODS": "5min,300"}, "names a period twice"),
        ({"WINDOW__ADVANCE": "10min"}, "longer than the shortest period"),
        ({"WINDOW__ADVANCE": "1s"}, "counted in 300 windows, at most 120"),
        ({"EWMA__FORM": "time", "EWMA__START": "zero"}, "belongs to form = count"),
        ({"EWMA__FORM": "time", "EWMA__TAU": "0.5"}, "at least 1/500 of the longest period: 0.6 s"),
    ],
)
def test_what_does_not_go_together_is_said(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], says: str
) -> None:
    for variable, value in changes.items():
        monkeypatch.setenv(f"KSTREAM__{variable}", value)
    with pytest.raises(SettingsError, match=says):
        load()
