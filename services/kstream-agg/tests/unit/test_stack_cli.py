from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kstream_agg.cli.doctor import doctor
from kstream_agg.cli.stack import stack
from kstream_agg.core.errors import KStreamError, SettingsError, StackError
from kstream_agg.stack import control
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import make_plan, write_plan
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.run import run_supervisor
from kstream_agg.stack.settings import (
    ArtifactSettings,
    PortSettings,
    StackSettings,
    load_stack_settings,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the default configuration, on ports that are free."""
    (tmp_path / "config").mkdir()
    monkeypatch.setenv("KSTREAM_CONFIG_DIR", str(tmp_path / "config"))
    names = list(PortSettings.model_fields)
    for name, port in zip(names, free_ports(len(names)), strict=True):
        monkeypatch.setenv(f"KSTREAM__PORTS__{name.upper()}", str(port))
    return tmp_path


def call(*arguments: str, answer: str | None = None) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(stack, list(arguments), input=answer)
    return result.exit_code, result.output, result.exception


def test_settings_come_from_file_and_environment(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "config" / "stack").mkdir()
    file = checkout / "config" / "stack" / "default.toml"
    file.write_text("[memory]\nkafka_mb = 300\nconnect_mb = 512\n", encoding="utf-8")
    monkeypatch.setenv("KSTREAM__MEMORY__KAFKA_MB", "320")
    memory = load_stack_settings().memory
    assert (memory.kafka_mb, memory.connect_mb, memory.zipkin_mb) == (320, 512, 128)


def test_wrong_setting_is_named(checkout: Path) -> None:
    (checkout / "config" / "stack").mkdir()
    file = checkout / "config" / "stack" / "default.toml"
    file.write_text("[memory]\nkafka_md = 300\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"memory\.kafka_md .*no such setting"):
        load_stack_settings()


def test_status_without_a_stack_exits_1() -> None:
    code, output, _ = call("status")
    assert code == 1
    assert "no stack, not running" in output


def test_down_without_a_stack_is_no_error() -> None:
    code, output, _ = call("down")
    assert code == 0
    assert "no stack runs" in output


def test_logs_without_a_stack_name_the_remedy() -> None:
    _, _, error = call("logs", "kafka")
    assert isinstance(error, StackError)
    assert "no component 'kafka'" in str(error)


def test_too_large_offset_is_one_sentence() -> None:
    _, _, error = call("up", "--port-offset", "60000")
    assert isinstance(error, SettingsError)
    assert "--port-offset 60000" in str(error)


def test_unknown_component_of_only_is_named() -> None:
    _, _, error = call("up", "--only", "kafka,mysql")
    assert isinstance(error, KStreamError)
    assert "no component 'mysql'" in str(error)


def test_component_that_lacks_another_is_named() -> None:
    _, _, error = call("up", "--only", "connect")
    assert isinstance(error, StackError)
    assert (str(error), error.remedy) == ("connect needs kafka", "add kafka to --only")


def test_taken_port_is_named_before_anything_is_fetched(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSTREAM_CACHE_DIR", str(checkout / "cache"))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        monkeypatch.setenv("KSTREAM__PORTS__ZIPKIN", str(holder.getsockname()[1]))
        _, _, error = call("up")
    assert isinstance(error, StackError)
    assert "of zipkin ([ports] zipkin) is taken by" in str(error)
    assert f"(pid {os.getpid()})" in str(error)
    assert not (checkout / "cache").exists()


def test_reset_asks_first(checkout: Path) -> None:
    folder = checkout / ".data" / "live"
    folder.mkdir(parents=True)
    write_plan(Layout(folder).plan, make_plan("live", StackSettings()))
    code, output, _ = call("reset", answer="n\n")
    assert code == 1
    assert str(folder) in output
    assert folder.exists()
    assert call("reset", answer="y\n")[0] == 0
    assert not folder.exists()


def test_supervisor_needs_a_plan(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="has no stack"):
        run_supervisor(tmp_path)


def test_full_disk_while_starting_is_one_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSTREAM_CACHE_DIR", str(checkout / "cache"))
    settings = StackSettings(artifacts=ArtifactSettings(repository="http://127.0.0.1:1"))
    full = OSError(28, "No space left on device")

    def fail(*args: object) -> None:
        del args
        raise full

    monkeypatch.setattr(control, "write_plan", fail)
    with pytest.raises(StackError, match="is full"):
        control.up(checkout / "data", make_plan("base", settings, only=("postgres",)))


def test_doctor_exits_1_when_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_MEMORY_MB", "_DATA_MB", "_UNPACKED_MB"):  # whatever this machine has
        monkeypatch.setattr(f"kstream_agg.stack.doctor.{limit}", 0)
    good = CliRunner().invoke(doctor)
    assert good.exit_code == 0, good.output
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setenv("KSTREAM__PORTS__KAFKA", str(port))
        bad = CliRunner().invoke(doctor)
    assert bad.exit_code == 1
    assert f"port {port} (kafka)" in bad.output
