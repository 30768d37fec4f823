"""What a supervisor writes down: `supervisor.json`, replaced as a whole at every change.

Processes are known by number and start time together: after a reboot, or when numbers are used
again, an old file then names nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import psutil

from kstream_agg.core.errors import StackError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ComponentState",
    "ComponentStatus",
    "ProcessId",
    "StackStatus",
    "is_alive",
    "process_id",
    "read_state",
    "write_state",
]

ComponentState = Literal[
    "waiting",  # for those it depends on
    "preparing",
    "starting",
    "ready",
    "unhealthy",  # it was ready and does not answer now, or what it has made is broken
    "backoff",  # it died; the next start is near
    "done",  # one-shot, and it ended well
    "stopping",
    "stopped",
]


class ProcessId(msgspec.Struct, frozen=True):
    """A process, told apart from later ones with its number by its start time (s, epoch)."""

    pid: int
    create_time: float


class ComponentStatus(msgspec.Struct, frozen=True):
    """How a component is.

    Attributes:
        name: Its token.
        state: What it does.
        process: Its process, if it has one.
        restarts: How often it was started again since the supervisor began.
        detail: A sentence on what it waits for or what went wrong; may be empty.
        since: When it entered the state (s, epoch).
        next_start: When it is started again (s, epoch), in state `backoff`.
        ports: What it listens on.
        address: What to open or connect to.
    """

    name: str
    state: ComponentState
    process: ProcessId | None
    restarts: int
    detail: str
    since: float
    next_start: float | None
    ports: dict[str, int]
    address: str

    @property
    def is_healthy(self) -> bool:
        """Ready, or done."""
        return self.state in ("ready", "done")


class StackStatus(msgspec.Struct, frozen=True):
    """How a stack is.

    Attributes:
        profile: What it was started as.
        supervisor: Its process; None when no supervisor runs.
        stopping: It was asked to end.
        started_at: When the supervisor began (s, epoch).
        components: In the order of their start.
    """

    profile: str
    supervisor: ProcessId | None
    stopping: bool
    started_at: float
    components: tuple[ComponentStatus, ...]

    @property
    def is_running(self) -> bool:
        """Its supervisor lives."""
        return self.supervisor is not None

    @property
    def is_healthy(self) -> bool:
        """It runs, and all its components are healthy."""
        return self.is_running and not self.stopping and all(c.is_healthy for c in self.components)

    def component(self, name: str) -> ComponentStatus:
        """One component's status.

        Raises:
            StackError: It has no such component.
        """
        for component in self.components:
            if component.name == name:
                return component
        names = ", ".join(component.name for component in self.components) or "none"
        raise StackError(f"the stack has no component '{name}'", remedy=f"it has: {names}")


def process_id(pid: int) -> ProcessId | None:
    """The process that has this number now; None when nobody has."""
    try:
        return ProcessId(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(process: ProcessId) -> bool:
    """Whether the very process still runs; one that only waits to be reaped does not."""
    try:
        found = psutil.Process(process.pid)
        # The start time is computed from the boot time, which a corrected clock moves a little.
        same: bool = abs(found.create_time() - process.create_time) < 2.0
        return same and not _has_ended(found)
    except psutil.NoSuchProcess:
        return False


def _has_ended(process: psutil.Process) -> bool:
    """Whether it only waits to be reaped.

    With its first thread gone it looks so too, and still holds its ports until the others end.
    """
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1


def write_state(path: Path, status: StackStatus) -> None:
    """Replace the state file."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(status)))
    new.replace(path)


def read_state(path: Path) -> StackStatus | None:
    """What the file says; None without one or when it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StackStatus)
    except (OSError, msgspec.DecodeError):
        return None
