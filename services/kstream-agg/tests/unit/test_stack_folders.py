"""Whose a data folder is: live or demo, whose recording, a stack's at all."""

from __future__ import annotations

import csv
import gzip
import os
import socket
from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.errors import ContractError, PrerequisiteError, SettingsError, StackError
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulation.state import SimulatorState, StateFile
from kstream_agg.stack import control
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import make_plan, read_kind, read_plan, write_kind, write_plan
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.settings import PortSettings, StackSettings, kind_of
from kstream_agg.stack.state import StackStatus, process_id, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from kstream_agg.stack.settings import Profile


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    monkeypatch.setenv("KSTREAM_CONFIG_DIR", str(folder))
    return folder


def settings_on_free_ports(**taken: int) -> StackSettings:
    names = list(PortSettings.model_fields)
    ports = dict(zip(names, free_ports(len(names)), strict=True)) | taken
    return StackSettings(ports=PortSettings(**ports))


@pytest.mark.parametrize(
    ("before", "now"), [("live", "demo"), ("base", "demo"), ("demo", "live"), ("demo", "base")]
)
def test_demo_and_live_refuse_each_others_folder(
    before: Profile, now: Profile, tmp_path: Path, config: Path
) -> None:
    del config
    write_plan(Layout(tmp_path).plan, make_plan(before, StackSettings()))
    with pytest.raises(StackError, match=f"data of a {kind_of(before)} stack"):
        control.up(tmp_path, make_plan(now, StackSettings()))


def test_folder_keeps_its_kind_whatever_is_planned_later(tmp_path: Path, config: Path) -> None:
    del config
    layout = Layout(tmp_path)
    assert read_kind(layout) is None
    write_kind(layout, "demo")
    write_kind(layout, "live")
    assert read_kind(layout) == "demo"
    # Neither another plan nor none says otherwise.
    write_plan(layout.plan, make_plan("live", StackSettings()))
    with pytest.raises(StackError, match="data of a demo stack"):
        control.up(tmp_path, make_plan("live", StackSettings()))
    layout.kind.write_text("dmeo", encoding="ascii")
    with pytest.raises(StackError, match="says: dmeo"):
        control.up(tmp_path, make_plan("demo", StackSettings()))


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, config: Path) -> None:
    del config
    (tmp_path / "file").touch()
    with pytest.raises(PrerequisiteError, match="cannot be written"):
        control.up(tmp_path / "file" / "data", make_plan("base", StackSettings()))


def test_refused_first_start_leaves_nothing(tmp_path: Path, config: Path) -> None:
    del config
    folder = tmp_path / "data"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        settings = settings_on_free_ports(kafka=port)
        with pytest.raises(StackError, match=f"port {port} of kafka"):
            control.up(folder, make_plan("base", settings, only=("kafka",)))
    assert not folder.exists()
    control.reset(folder)


def test_reset_removes_what_only_a_stack_writes(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    (layout.logs).mkdir(parents=True)
    layout.home("kafka").mkdir()
    layout.postgres_password.touch()
    layout.state.with_name("supervisor.json.new").touch()
    control.reset(layout.folder)
    assert not layout.folder.exists()


def simulated(folder: Path, recording: str) -> None:
    state = SimulatorState(recording, trades=1, last_ms=1, looped=0, written_ms=1, loop=0.0)
    StateFile(Layout(folder).simulator_state).save(state)


def small_recording(folder: Path, name: str = "small.csv.gz") -> Path:
    path = folder / name
    trade = generate_trades(seed=3, count=1, instruments=["BTC-27MAR26-100000-C"]).trades[0]
    columns = ("timestamp", "trade_id", "trade_seq", "instrument_name", "direction", "price",
               "amount", "iv", "index_price", "tick_direction")  # fmt: skip
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerow(trade)
    return path


def test_another_recording_is_refused_before_anything_starts(tmp_path: Path, config: Path) -> None:
    del config
    folder = tmp_path / "data"
    folder.mkdir()
    simulated(folder, "other.csv.gz")
    options = {"recording": str(small_recording(tmp_path)), "loop": "0"}
    only = ("kafka", "deribit-simulator")
    plan = make_plan("demo", settings_on_free_ports(), only=only, options=options)
    with pytest.raises(SettingsError, match=r"1 trades of 'other\.csv\.gz'") as caught:
        control.up(folder, plan)
    assert "make reset" in (caught.value.remedy or "")
    assert "KSTREAM__DATA_DIR" in (caught.value.remedy or "")
    assert [path.name for path in folder.iterdir()] == ["deribit-simulator.json"]


def test_recording_that_cannot_be_played_is_refused_before_anything_starts(
    tmp_path: Path, config: Path
) -> None:
    del config
    bad = tmp_path / "bad.csv.gz"
    bad.write_bytes(b"no archive")
    settings = settings_on_free_ports()
    plan = make_plan("demo", settings, only=("deribit-simulator",), options={"recording": str(bad)})
    with pytest.raises(ContractError, match=r"bad\.csv\.gz"):
        control.up(tmp_path / "data", plan)
    assert not (tmp_path / "data").exists()


def test_reset_removes_a_stacks_folder_and_no_other(tmp_path: Path, config: Path) -> None:
    del config
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(StackError, match="left alone"):
        control.reset(other)
    assert other.exists()
    write_plan(Layout(other).plan, make_plan("live", StackSettings()))
    control.reset(other)
    assert not other.exists()


def test_reset_refuses_a_running_stack(tmp_path: Path) -> None:
    me = process_id(os.getpid())
    state = StackStatus("live", me, stopping=False, started_at=0.0, components=())
    write_state(Layout(tmp_path).state, state)
    with pytest.raises(StackError, match="already runs"):
        control.reset(tmp_path)


def test_plan_is_read_as_it_was_written(tmp_path: Path, config: Path) -> None:
    del config
    plan = make_plan("demo", StackSettings(), only=("kafka",), options={"loop": "0"})
    write_plan(tmp_path / "stack.json", plan)
    assert read_plan(tmp_path / "stack.json") == plan
    assert read_plan(tmp_path / "none.json") is None
    (tmp_path / "stack.json").write_text("no", encoding="ascii")
    with pytest.raises(StackError, match="cannot be read"):
        read_plan(tmp_path / "stack.json")
