"""The README's settings table: complete, true, and each row works through its variable."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr

from kstream_agg.aggregate.settings import AggProducerSettings
from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import (
    ENV_PREFIX,
    TOP_LEVEL_KEYS,
    ServiceSettings,
    load_settings,
)
from kstream_agg.deribit.settings import RawProducerSettings
from kstream_agg.deribit.simulator_service import SimulatorSettings
from kstream_agg.pipeline.settings import PipelineSettings
from kstream_agg.sinks.batch_sink import BatchSinkSettings
from kstream_agg.sinks.settings import ToolSettings, WatchSettings
from kstream_agg.stack.settings import StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

README = Path(__file__).resolve().parents[4] / "README.md"
CLASSES: tuple[type[ServiceSettings], ...] = (
    ServiceSettings,
    RawProducerSettings,
    AggProducerSettings,
    PipelineSettings,
    BatchSinkSettings,
    SimulatorSettings,
    StackSettings,
    ToolSettings,
    WatchSettings,
)
# Where a changed value must keep a form that no type tells.
SAMPLES = {
    "KSTREAM__CHANNELS": "trades.future.BTC.100ms,trades.ETH-PERPETUAL.agg2",
    "KSTREAM__EXCHANGE__URL": "wss://test.example/ws/api/v2",
    "KSTREAM__SIMULATOR__SPEED": "7",
    "KSTREAM__SIMULATOR__INSTRUMENTS": "BTC-.*",
    "KSTREAM__KAFKA__PROPERTIES": '{"socket.keepalive.enable": true}',
    "KSTREAM__TELEMETRY__SAMPLE_RATIO": "0.25",
    "KSTREAM__EXCHANGE__RECONNECT_MIN_S": "0.5",
    "KSTREAM__HISTORY__REST_URL": "https://test.example/api/v2",
    "KSTREAM__HISTORY__ARCHIVE_URL": "https://test.example/api/v2",
    "KSTREAM__HISTORY__PAGE_TRADES": "500",
    "KSTREAM__WINDOW__PERIODS": "60,300",
    "KSTREAM__WINDOW__ADVANCE": "60",
    "KSTREAM__SINK__TOPICS": "one,two",
    "KSTREAM__SINK__DATA_CODES": "36,43",
    "KSTREAM__SINK__STOP_RATIO": "0.25",
}


def fields(
    model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, (*path, name))
        else:
            yield (*path, name), field


def variable(path: tuple[str, ...]) -> str:
    return ENV_PREFIX + "__".join(path).upper()


ALL = {
    variable(path): (model, path, field)
    for model in reversed(CLASSES)
    for path, field in fields(model)
}


def rows() -> dict[str, str]:
    """Variable → default, as the README has them."""
    pattern = re.compile(r"^\| `(KSTREAM__\w+)` \| (.*?) \| .*\|$", re.MULTILINE)
    found = pattern.findall(README.read_text(encoding="utf-8"))
    assert len({name for name, _ in found}) == len(found), "a variable stands twice"
    return {name: default.strip("` ") for name, default in found}


def as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def other_value(field: FieldInfo, kind: Any, default: object) -> str:  # noqa: ANN401 - any annotation
    """A value that differs from the default and that the field takes."""
    if get_origin(kind) is Literal:
        return next(str(choice) for choice in get_args(kind) if choice != default)
    if get_origin(kind) in {Union, types.UnionType}:
        first = next(part for part in get_args(kind) if part is not type(None))
        return other_value(field, first, default)
    if kind is bool:
        return str(not default).lower()
    if kind in {int, float}:
        assert default is None or isinstance(default, int | float)
        return str((default or 0) + 1)
    if kind in {str, SecretStr, Path}:
        return f"{default or 'some'}-other"
    raise AssertionError(f"no sample for {kind}")


def value_at(settings: BaseModel, path: tuple[str, ...]) -> object:
    found: object = settings
    for name in path:
        found = getattr(found, name)
    return found


def test_the_table_holds_every_setting_and_no_other() -> None:
    assert sorted(rows()) == sorted(ALL)


def test_a_variable_that_no_service_knows_is_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path[0] for _, path, _ in ALL.values()} == TOP_LEVEL_KEYS
    monkeypatch.setenv("KSTREAM__CHANNNELS", "trades.option.BTC.100ms")
    with pytest.raises(SettingsError, match="KSTREAM__CHANNNELS") as caught:
        load_settings(ServiceSettings, "none", folder=tmp_path)
    assert caught.value.remedy == "did you mean KSTREAM__CHANNELS?"


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_tables_default_is_the_default(name: str) -> None:
    _, _, field = ALL[name]
    assert rows()[name] == as_text(field.get_default(call_default_factory=True))


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_variable_changes_the_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, field = ALL[name]
    before = value_at(load_settings(model, "none", folder=tmp_path), path)
    text = SAMPLES.get(name) or other_value(field, field.annotation, before)
    monkeypatch.setenv(name, text)
    after = value_at(load_settings(model, "none", folder=tmp_path), path)
    assert after != before
    if isinstance(after, SecretStr):
        after = after.get_secret_value()
    if isinstance(after, dict):
        assert after == json.loads(text)
    elif isinstance(after, float | int) and not isinstance(after, bool):
        assert float(after) == float(text)
    else:
        assert as_text(after) == text
