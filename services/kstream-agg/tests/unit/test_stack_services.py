from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import make_plan, plan_context
from kstream_agg.stack.profiles import build_components, select_names
from kstream_agg.stack.settings import StackSettings

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.component import Component
    from kstream_agg.stack.settings import Profile


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSTREAM_CONFIG_DIR", str(tmp_path))
    return tmp_path


def components(folder: Path, profile: Profile, **options: str) -> dict[str, Component]:
    plan = make_plan(profile, StackSettings(), options=options)
    context = plan_context(plan, Layout(folder / "data"))
    return {c.name: c for c in build_components(select_names(profile), context)}


def test_services_are_told_where_the_stack_is(config: Path) -> None:
    built = components(config, "live", channels="trades.future.BTC.100ms")
    for name in ("connectors", "connectors-watch", "raw-producer", "agg-producer"):
        env = built[name].env
        assert env["KSTREAM__KAFKA__BOOTSTRAP_SERVERS"] == "127.0.0.1:9092"
        assert env["KSTREAM__POSTGRES__PASSWORD_FILE"] == str(config / "data/postgres.password")
        assert env["KSTREAM__TELEMETRY__EXPORTER"] == "zipkin"
        assert env["KSTREAM__CHANNELS"] == "trades.future.BTC.100ms"
        assert env["KSTREAM_CONFIG_DIR"] == str(config)
    assert built["raw-producer"].argv == (sys.executable, "-m", "kstream_agg", "raw-producer")
    assert built["raw-producer"].env["KSTREAM__HTTP__PORT"] == "9101"
    assert built["connectors"].probe is None


def test_live_source_is_the_users_and_a_demos_is_the_simulator(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSTREAM__EXCHANGE__URL", "wss://elsewhere/ws")
    live = components(config, "live")["raw-producer"]
    assert live.env["KSTREAM__EXCHANGE__URL"] == "wss://elsewhere/ws"
    demo = components(config, "demo")["raw-producer"]
    assert demo.env["KSTREAM__EXCHANGE__URL"] == "ws://127.0.0.1:8090/ws/api/v2"
    assert "deribit-simulator" in demo.depends_on


@pytest.mark.parametrize(
    ("users", "exporter", "endpoint"),
    [
        ({}, "zipkin", "http://127.0.0.1:9411/api/v2/spans"),
        ({"EXPORTER": "none"}, "none", None),
        ({"EXPORTER": "otlp"}, "otlp", None),
        ({"EXPORTER": "otlp", "ENDPOINT": "http://o/"}, "otlp", "http://o/"),
        ({"EXPORTER": "zipkin"}, "zipkin", "http://127.0.0.1:9411/api/v2/spans"),
        ({"ENDPOINT": "http://z/"}, "zipkin", "http://z/"),
    ],
)
def test_where_spans_go_is_the_users_to_say(
    users: dict[str, str],
    exporter: str,
    endpoint: str | None,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in users.items():
        monkeypatch.setenv(f"KSTREAM__TELEMETRY__{name}", value)
    env = components(config, "live")["agg-producer"].env
    assert env["KSTREAM__TELEMETRY__EXPORTER"] == exporter
    assert env.get("KSTREAM__TELEMETRY__ENDPOINT") == endpoint


def test_playback_options_reach_the_simulator(config: Path) -> None:
    simulator = components(config, "demo", recording="/r.csv.gz", loop="0", channels="x")
    env = simulator["deribit-simulator"].env
    assert env["KSTREAM__SIMULATOR__RECORDING"] == "/r.csv.gz"
    assert env["KSTREAM__SIMULATOR__LOOP"] == "0"
    assert "KSTREAM__SIMULATOR__CHANNELS" not in env


def test_java_is_shielded_from_the_users_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx1g")
    monkeypatch.setenv("CLASSPATH", "/elsewhere")
    for name in ("kafka", "schema-registry", "connect", "zipkin"):
        component = components(config, "base")[name]
        assert not {"JAVA_TOOL_OPTIONS", "CLASSPATH"} & set(component.env)
        assert "-Duser.timezone=UTC" in component.argv


def test_servers_end_after_those_that_use_them(config: Path) -> None:
    built = components(config, "demo")
    for component in built.values():
        for needed in component.depends_on:
            if built[needed].probe is not None and component.probe is not None:
                assert built[needed].stop_group >= component.stop_group
    # The bounds of all groups together stay below what `stack down` waits.
    groups = {c.stop_group for c in built.values()}
    longest = [max(c.stop_timeout_s for c in built.values() if c.stop_group == g) for g in groups]
    assert sum(longest) <= 110
