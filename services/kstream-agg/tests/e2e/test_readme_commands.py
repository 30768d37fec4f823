"""The README's commands, word for word, in its order, on a stack with ports and data of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.settings import PortSettings
from kstream_agg.stack.testing import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CHECKOUT = Path(__file__).resolve().parents[4]
README = CHECKOUT / "README.md"
# Commands of the README that another test runs.
ELSEWHERE = {
    "make test": "this very suite",
    "make run": "test_make_run_without_the_exchange_says_so_and_ctrl_c_stops_all",
    "make run CHANNELS=trades.future.BTC.100ms,trades.option.ETH.100ms": "the same",
    "make demo RECORDING=my-trades.csv.gz LOOP=0": "test_make_demo_names_a_recording_it_lacks",
    ".venv/bin/python examples/batch_and_print.py trades-option-btc": "test_pipeline_programs.py",
    "make uninstall": "test_make_uninstall_removes_data_downloads_and_environment",
}
# Those that stand inside a sentence.
INLINE = {
    "make run": ELSEWHERE["make run"],
    "make demo": "test_every_command_exits_0_in_the_readmes_order",
    "make help": "tests/unit/test_bootstrap.py",
    "make doctor": "test_make_doctor_finds_this_machine_fit",
    "make reset": "test_make_uninstall_removes_data_downloads_and_environment",
    "make test-compose": "tests/compose, where there is an engine",
    "make logs s=COMPONENT": "test_every_command_exits_0_in_the_readmes_order",
    "make logs s=agg-producer": "the same",
    "make logs s=connectors-watch": "the same",
    "make lint": ".ci/run",
    "make test-unit": "part of this suite",
    "make test": "this very suite",
    "make bench": "tests/unit/test_benchmarks.py",
    "make test-faults": ".ci/run",
    "make test-soak": "the long suites, run by hand",
    "kstream-agg batch-sink": "tests/stack/test_batch_sink.py",
    "kstream-agg batch-sink check": "the same",
    "kstream-agg cluster": "tests/faults/test_three_brokers.py",
    "kstream-agg topics": "tests/stack/test_kafka_cli.py",
    "kstream-agg producer": "the same",
    "kstream-agg verify": "test_every_command_exits_0_in_the_readmes_order",
    "kstream-agg recompute": "test_recompute.py",
    "kstream-agg --debug …": "tests/unit/test_cli_main.py",
}


def commands() -> list[str]:
    """The commands of the README's `sh` blocks; a line that begins with a blank continues."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in re.split(r"\n(?! )", block.strip())]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """What keeps a stack apart from any other on this machine."""
    names = list(PortSettings.model_fields)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with open_folder("kstream-readme-") as folder:
        yield {
            **os.environ,
            **{f"KSTREAM__PORTS__{name.upper()}": str(port) for name, port in ports.items()},
            "KSTREAM__DATA_DIR": str(folder / "data"),
            "KSTREAM_STACK_DIR": str(folder / "data"),
            # The containers have a test of their own: make test-compose.
            "STACK": "local",
        }
        left = processes_of(folder)
        for process in left:
            process.kill()
        assert left == [], "processes were left behind"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that have the folder in their command line or as working directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or ()), process.info["cwd"] or ""]
        if any(str(folder) in word for word in words):
            found.append(process)
    return found


def run(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S602 - a reader types it into a shell, too
        command,
        shell=True,
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_every_command_exits_0_in_the_readmes_order(environment: dict[str, str]) -> None:
    wanted = [command for command in commands() if command not in ELSEWHERE]
    assert "make demo DETACH=1" in wanted
    assert ".venv/bin/kstream-agg verify --wait" in wanted
    assert wanted[-1] == "make stop"
    said = {}
    try:
        for command in wanted:
            done = run(command, environment)
            said[command] = done.stdout
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
    finally:
        run("make stop", environment)
    assert "all equal" in said[".venv/bin/kstream-agg verify --wait"]
    assert "rows in trades_btc_perpetual " in said["make status"]
    one = said[".venv/bin/kstream-agg consume trades-option-btc --count 1"]
    assert '"instrument_name"' in one
    assert '"simulated": "true"' in one
    assert "delta 0" in said["make example-clickhouse"]
    assert "no offset is missing, none is there twice" in said["make example-clickhouse"]


def test_make_status_without_a_stack_names_the_remedy(environment: dict[str, str]) -> None:
    done = run("make status", environment)
    assert done.returncode != 0
    assert "make demo" in done.stderr
    assert "Traceback" not in done.stderr


def test_make_demo_names_a_recording_it_lacks(environment: dict[str, str]) -> None:
    done = run("make demo RECORDING=my-trades.csv.gz LOOP=0", environment)
    assert done.returncode != 0
    assert "my-trades.csv.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_make_run_without_the_exchange_says_so_and_ctrl_c_stops_all(
    environment: dict[str, str],
) -> None:
    nobody = environment | {"KSTREAM__EXCHANGE__URL": "ws://127.0.0.1:1/ws/api/v2"}
    process = subprocess.Popen(
        ["make", "run", "CHANNELS=trades.future.BTC.100ms,trades.option.ETH.100ms"],
        cwd=CHECKOUT,
        env=nobody,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output: list[str] = []
    reader = threading.Thread(
        target=lambda: output.extend(process.stdout or ()), name="output", daemon=True
    )
    reader.start()
    try:
        deadline = time.monotonic() + 240
        detail = ""
        while "no session with the exchange" not in detail:
            assert time.monotonic() < deadline, detail + "".join(output)
            assert process.poll() is None, "".join(output)
            detail = run(".venv/bin/kstream-agg stack status --json", environment).stdout
        topics = run(".venv/bin/kstream-agg topics", environment).stdout
    finally:
        # As a terminal does: to the whole foreground group.
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=120)
        reader.join(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
    text = "".join(output)
    assert "trades-future-btc" in topics
    assert "trades-option-eth" in topics
    assert "make demo" in text
    assert "is stopped" in text
    assert "Traceback" not in text


def test_make_doctor_finds_this_machine_fit(environment: dict[str, str]) -> None:
    done = run("make doctor", environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       the venv module" in done.stdout
    assert "are free" in done.stdout


def test_make_uninstall_removes_data_downloads_and_environment(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """On an environment that is only a link to the real one, and a cache of its own."""
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "bin").symlink_to(CHECKOUT / ".venv" / "bin")
    cache = tmp_path / "cache"
    (cache / "maven" / "org").mkdir(parents=True)
    (cache / "maven" / "org" / "some.jar").write_bytes(b"jar")
    environment = environment | {"KSTREAM_CACHE_DIR": str(cache)}
    up = run(".venv/bin/kstream-agg stack up --only postgres", environment)
    assert up.returncode == 0, up.stdout + up.stderr
    done = run(f"make uninstall YES=1 VENV={venv}", environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not venv.exists()
    assert not cache.exists()
    assert not Path(environment["KSTREAM__DATA_DIR"]).exists()
    assert (CHECKOUT / ".venv" / "bin" / "kstream-agg").exists()


def test_every_command_of_another_test_still_stands_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(commands())
    text = README.read_text("utf-8")
    inline = set(re.findall(r"`((?:make|kstream-agg) [^`\n]+)`", text))
    assert inline - set(ELSEWHERE) == set(INLINE) - set(ELSEWHERE)
