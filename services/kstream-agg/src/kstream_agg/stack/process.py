"""Starting and ending component processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from kstream_agg.stack import launch
from kstream_agg.stack.logfiles import last_error
from kstream_agg.stack.state import ProcessId, is_alive, process_id

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable

    from kstream_agg.stack.component import Component
    from kstream_agg.stack.layout import Layout

__all__ = ["Handle", "Launcher", "ProcessLauncher", "end_processes", "launch_command"]


class Handle(Protocol):
    """A started process."""

    @property
    def identity(self) -> ProcessId:
        """Which one it is."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""

    def last_error(self) -> str | None:
        """The last error that it has put into its log in our programs' way, with the remedy."""


class Launcher(Protocol):
    """Starts components."""

    def start(self, component: Component) -> Handle:
        """Start a component's process.

        Raises:
            OSError: It cannot be started.
        """


class _ProcessHandle:
    def __init__(self, process: subprocess.Popen[bytes], log: Path, begin: int) -> None:
        self._process = process
        self._log = log
        self._begin = begin
        self.identity = process_id(process.pid) or ProcessId(process.pid, 0.0)

    def poll(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def last_error(self) -> str | None:
        return last_error(self._log, self._begin)


class ProcessLauncher:
    """Starts real processes, their output appended to the component's log file.

    Must be called from a thread that lives as long as the processes: on Linux they die with it.

    Args:
        layout: The stack's data folder.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def start(self, component: Component) -> Handle:
        """Start a component's process.

        Raises:
            OSError: It cannot be started.
        """
        log = self._layout.log(component.name)
        with log.open("ab") as output:
            begin = output.tell()
            process = subprocess.Popen(
                launch_command(component),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=component.cwd,
                env=dict(component.env),
                # Out of the terminal's reach: Ctrl-C is the supervisor's to pass on.
                start_new_session=True,
            )
        return _ProcessHandle(process, log, begin)


def launch_command(component: Component) -> list[str]:
    """The command line that starts a component through `launch`."""
    options = ["--parent", str(os.getpid())]
    if component.account is not None:
        options += ["--uid", str(component.account.uid), "--gid", str(component.account.gid)]
        options += ["--traverse"] if component.account.traverse else []
    script = str(Path(launch.__file__).resolve())
    return [sys.executable, "-I", "-S", script, *options, "--", *component.argv]


def end_processes(processes: Iterable[ProcessId], *, timeout_s: float) -> list[ProcessId]:
    """End processes: SIGTERM, and SIGKILL for those that live after `timeout_s`.

    Returns:
        Those that had to be killed.
    """
    found = []
    for process in processes:
        if is_alive(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(process.pid))
    for each in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    _, alive = psutil.wait_procs(found, timeout=timeout_s)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=timeout_s)
    return [process for process in processes if process.pid in {each.pid for each in alive}]
