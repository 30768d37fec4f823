"""Ctrl-C on the live table: once stops the stack in good order, again stops it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack import control
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.process import end_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.stack.state import StackStatus

# A supervisor of one component, which ends only by SIGKILL, and would be given ten minutes.
SUPERVISOR = """
import sys
from pathlib import Path
from kstream_agg.stack.component import Component
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.settings import RestartSettings
from kstream_agg.stack.supervisor import supervise

layout = Layout(Path(sys.argv[1]))
deaf = layout.folder / "deaf"
code = (
    "import pathlib, signal, sys;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "pathlib.Path(sys.argv[1]).touch();"
    "signal.pause()"
)
component = Component(
    name="kafka",
    argv=(sys.executable, "-c", code, str(deaf)),
    probe=lambda: None if deaf.exists() else "not yet",
    env={},
    cwd=layout.folder,
    stop_timeout_s=600,
)
supervise(layout, "live", [component], RestartSettings())
"""

# The live table; says when it looks at the stack for the first time: it hears signals by then.
TABLE = """
import sys
from pathlib import Path
from rich.console import Console
from kstream_agg.cli import run
from kstream_agg.stack import control

look = control.read_status

def say(folder):
    print("looking", flush=True)
    control.read_status = look
    return look(folder)

control.read_status = say
run._attend(Path(sys.argv[1]), Console(width=200))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The data folder of a stack that is ready."""
    Layout(tmp_path).logs.mkdir()
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)]) as supervisor:
        try:
            wait_until(tmp_path, lambda status: status.is_healthy)
            yield tmp_path
        finally:
            supervisor.kill()
            left = control.read_status(tmp_path).components
            end_processes([c.process for c in left if c.process], timeout_s=5)


def wait_until(folder: Path, condition: Callable[[StackStatus], bool]) -> StackStatus:
    deadline = time.monotonic() + 60
    while not condition(found := control.read_status(folder)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_second_ctrl_c_ends_at_once_what_does_not_end(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "KSTREAM_CONFIG_DIR": str(tmp_path),
        "KSTREAM__POSTGRES__PORT": str(free_ports(1)[0]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", TABLE, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as table:
        try:
            assert table.stdout is not None
            assert table.stdout.readline() == "looking\n"
            table.send_signal(signal.SIGINT)
            asked = wait_until(folder, lambda status: status.component("kafka").state == "stopping")
            assert asked.is_running
            table.send_signal(signal.SIGINT)
            output, errors = table.communicate(timeout=60)
        finally:
            table.kill()
    assert table.returncode == 0, errors
    assert "kafka had to be killed" in output
    assert f"the stack on {folder} is stopped" in output
    assert not control.read_status(folder).is_running
