"""The agg-producer's settings: file, environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kstream_agg.aggregate.rules import WindowRules
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
        period_ms=300_000, grace_ms=0, lateness_ms=2_000, skew_ms=60_000, alpha=2 / 301
    )


@pytest.mark.parametrize(
    ("variable", "value", "read", "wanted"),
    [
        ("WINDOW__PERIOD", "1h", "window.period", 3_600),
        ("WINDOW__PERIOD", "90", "window.period", 90),
        ("WINDOW__GRACE", "1min", "window.grace", 60.0),
        ("WINDOW__ALLOWED_LATENESS", "0.5", "window.allowed_lateness", 0.5),
        ("WINDOW__FUTURE_SKEW", "0", "window.future_skew", 0.0),
        ("WINDOW__IDLE_TIMEOUT", "10s", "window.idle_timeout", 10.0),
        ("EWMA__N", "20", "ewma.n", 20),
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
