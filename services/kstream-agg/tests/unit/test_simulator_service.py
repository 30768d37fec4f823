"""The deribit-simulator service: its settings and what it plays by default."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import config_dir, load_settings
from kstream_agg.deribit.recording import shipped_recording_path
from kstream_agg.deribit.simulator import change_options, simulator_in_thread
from kstream_agg.deribit.simulator_service import (
    SERVICE,
    ServiceOptions,
    SimulatorSettings,
    load_recording,
)


def demo_options() -> ServiceOptions:
    return load_settings(SimulatorSettings, SERVICE, folder=config_dir()).simulator


def test_the_demo_is_the_default() -> None:
    options = demo_options()
    assert (options.speed, options.shift_to_now, options.past_at_once) == (1, True, True)
    assert (options.loop, options.recording, options.host) == (20, None, "127.0.0.1")


def test_the_shipped_recording_is_played_without_its_third_part() -> None:
    recording, options = load_recording(demo_options())
    with simulator_in_thread(recording, options=options, port=0) as simulator:
        instruments = simulator.recording.instruments
    assert instruments["BTC-PERPETUAL"] == 6273
    assert "BTC-25JUN27" not in instruments
    assert sum(instruments.values()) == 6273 + 530


def test_another_recording_is_played_whole() -> None:
    chosen = change_options(demo_options(), {"recording": shipped_recording_path()})
    _, options = load_recording(chosen)
    assert options.instruments is None


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("recording", "other.jsonl", Path("other.jsonl")),
        ("speed", "max", "max"),
        ("speed", "2.5", 2.5),
        ("shift_to_now", "false", False),
        ("past_at_once", "false", False),
        ("loop", "0", 0),
        ("instruments", "ETH.+", "ETH.+"),
        ("host", "localhost", "localhost"),
        ("port", "21000", 21000),
        ("frame_trades", "7", 7),
        ("history", "10", 10),
        ("compression", "true", True),
        ("seed", "9", 9),
        ("state", "state.json", Path("state.json")),
    ],
)
def test_settings_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, expected: object
) -> None:
    monkeypatch.setenv(f"KSTREAM__SIMULATOR__{key.upper()}", text)
    assert getattr(demo_options(), key) == expected


@pytest.mark.parametrize(("key", "text"), [("speed", "fast"), ("loop", "-1"), ("port", "99999")])
def test_wrong_settings_name_their_variable(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str
) -> None:
    variable = f"KSTREAM__SIMULATOR__{key.upper()}"
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError, match=variable):
        demo_options()


def test_options_of_the_command_line_are_checked() -> None:
    with pytest.raises(SettingsError, match="port"):
        change_options(demo_options(), {"port": 99999})


def test_the_service_starts_says_it_is_simulated_and_stops() -> None:
    command = [sys.executable, "-m", "kstream_agg", SERVICE, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "simulated exchange" in line)
            with connect(json.loads(line)["websocket"]) as client:
                client.send('{"id": 1, "method": "public/hello", "params": {}}')
                assert json.loads(client.recv())["result"]["version"].startswith("simulator-")
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in rest


def test_a_scenario_of_the_command_line_befalls_its_clients(tmp_path: Path) -> None:
    scenario = tmp_path / "faults.toml"
    scenario.write_text("seed = 3\nrefuse_handshakes = 1.0\n", encoding="utf-8")
    command = [sys.executable, "-m", "kstream_agg", SERVICE, "--port", "0"]
    command += ["--scenario", str(scenario)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "simulated exchange" in line)
            with (
                pytest.raises(InvalidStatus, match=r"429|503"),
                connect(json.loads(line)["websocket"]),
            ):
                pass
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in rest


def test_a_wrong_scenario_is_one_sentence(tmp_path: Path) -> None:
    scenario = tmp_path / "faults.toml"
    scenario.write_text("drop = 7\n", encoding="utf-8")
    for path, said in ((scenario, "drop"), (tmp_path / "absent.toml", "cannot be read")):
        command = [sys.executable, "-m", "kstream_agg", SERVICE, "--port", "0"]
        done = subprocess.run(
            [*command, "--scenario", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert said in errors[0]
        assert "Traceback" not in done.stderr


def test_a_wrong_option_is_one_sentence() -> None:
    command = [sys.executable, "-m", "kstream_agg", SERVICE, "--recording", "absent.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the recording 'absent.csv' is not a file",
        "remedy: give the path of a recording",
    ]
