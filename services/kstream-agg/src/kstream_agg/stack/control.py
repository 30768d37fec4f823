"""Bringing a stack up and down, from outside its supervisor."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from kstream_agg.core.errors import StackError, UnavailableError
from kstream_agg.stack.components.kafka import broker_name
from kstream_agg.stack.doctor import refuse_lack
from kstream_agg.stack.download import Fetcher, disk_errors
from kstream_agg.stack.layout import Layout, make_private
from kstream_agg.stack.plan import plan_context, read_kind, read_plan, write_kind, write_plan
from kstream_agg.stack.ports import check_ports
from kstream_agg.stack.process import end_processes
from kstream_agg.stack.profiles import (
    COMPONENT_NAMES,
    artifact_groups,
    build_components,
    select_names,
)
from kstream_agg.stack.settings import MAX_BROKERS, kind_of
from kstream_agg.stack.state import StackStatus, is_alive, read_state
from kstream_agg.stack.unpack import unpack_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kstream_agg.stack.download import Progress
    from kstream_agg.stack.plan import Plan
    from kstream_agg.stack.settings import Kind

__all__ = ["down", "kill", "read_status", "reset", "resume", "suspend", "up", "wait_ready"]

_LOOK_S = 0.1
# The supervisor's own bounds on ending a component add up to less.
_DOWN_S = 120.0
_ORPHAN_S = 15.0


def read_status(data_dir: Path) -> StackStatus:
    """How the stack of a data folder is.

    Returns:
        Its status; without components when none was ever started there. A supervisor that is gone,
        after a reboot or a kill, is not there: its components are `stopped` unless they linger.
    """
    status = read_state(Layout(data_dir).state)
    if status is None:
        return StackStatus("", None, stopping=False, started_at=0.0, components=())
    if status.supervisor is not None and is_alive(status.supervisor):
        return status
    components = tuple(
        component
        if component.process and is_alive(component.process)
        else msgspec.structs.replace(component, state="stopped", process=None)
        for component in status.components
    )
    return msgspec.structs.replace(status, supervisor=None, components=components)


def up(data_dir: Path, plan: Plan, *, progress: Progress | None = None) -> list[str]:
    """Start a stack's supervisor; returns when it runs, not when all is ready.

    Args:
        data_dir: Where the stack keeps its data; made when missing.
        plan: What is to run.
        progress: Told about downloads.

    Returns:
        Names of components left over from a supervisor that was killed, ended now.

    Raises:
        StackError: It runs already, the folder is of another kind, a port is taken, a disk full.
        SettingsError: The demo's recording cannot be read, or not be played into this folder.
        ContractError: The demo's recording is damaged.
        UnavailableError: Java files are missing and cannot be fetched.
        PrerequisiteError: Java or Postgres is not installed, memory or disk too small.
    """
    layout = Layout(data_dir)
    _refuse_running(data_dir)
    kind = _refuse_other_kind(layout, plan)
    _refuse_other_brokers(layout, plan)
    orphans = _end_orphans(data_dir)
    names = select_names(plan.profile, plan.only)
    context = plan_context(plan, layout)
    refuse_lack(context.cache, data_dir)
    components = build_components(names, context)
    check_ports(components)
    for component in components:
        if component.check is not None:
            component.check()
    groups = artifact_groups(names)
    context.cache.ensure(groups, Fetcher(plan.repository), progress)
    unpack_all(context.cache, groups)
    with disk_errors(data_dir):
        layout.folder.mkdir(parents=True, exist_ok=True)
        write_kind(layout, kind)
        write_plan(layout.plan, plan)
        make_private(layout.logs)
        shutil.rmtree(layout.suspended, ignore_errors=True)
        layout.suspended.mkdir()
    _start_supervisor(layout)
    return orphans


def wait_ready(
    data_dir: Path,
    *,
    timeout_s: float,
    watch: Callable[[StackStatus], None] | None = None,
) -> StackStatus:
    """Wait until all components are ready.

    Args:
        data_dir: The stack's data folder.
        timeout_s: For how long.
        watch: Is shown the status again and again.

    Raises:
        StackError: The stack ended meanwhile.
        UnavailableError: Something is still not ready; says what and why.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        status = read_status(data_dir)
        if watch:
            watch(status)
        if status.is_healthy:
            return status
        if not status.is_running or status.stopping:
            raise StackError(
                "the stack ended before it was ready",
                remedy=f"see {Layout(data_dir).log('supervisor')}",
            )
        if time.monotonic() > deadline:
            late = [c for c in status.components if not c.is_healthy]
            said = "; ".join(f"{c.name}: {c.state} {c.detail}".strip() for c in late)
            raise UnavailableError(
                f"not ready after {timeout_s:.0f} s: {said}",
                remedy=f"it goes on trying; see 'kstream-agg stack status' and {late[0].name}'s "
                f"log {Layout(data_dir).log(late[0].name)}",
            )
        time.sleep(_LOOK_S)


def down(data_dir: Path, *, watch: Callable[[StackStatus], None] | None = None) -> list[str]:
    """End a stack and all its processes.

    Args:
        data_dir: The stack's data folder.
        watch: Is shown the status again and again.

    Returns:
        Names of components that had to be killed, or were left over from a killed supervisor.
    """
    status = read_status(data_dir)
    if status.supervisor is None:
        return _end_orphans(data_dir)
    supervisor = status.supervisor
    os.kill(supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_S
    while is_alive(supervisor):
        if watch:
            watch(read_status(data_dir))
        if time.monotonic() > deadline:
            end_processes([supervisor], timeout_s=_ORPHAN_S)
        time.sleep(_LOOK_S)
    last = read_status(data_dir)
    killed = [c.name for c in last.components if c.state == "stopped" and "killed" in c.detail]
    return killed + _end_orphans(data_dir)


def reset(data_dir: Path) -> None:
    """Remove a stack's data folder.

    Raises:
        StackError: The stack runs, or the folder is not a stack's.
    """
    _refuse_running(data_dir)
    if not data_dir.exists():
        return
    if not _is_data_folder(Layout(data_dir)):
        raise StackError(f"{data_dir} is not a stack's data folder: it is left alone")
    _end_orphans(data_dir)
    with disk_errors(data_dir):
        shutil.rmtree(data_dir)


def suspend(data_dir: Path, name: str, *, timeout_s: float = 60.0) -> None:
    """End one component of a running stack and leave it so until `resume`.

    Raises:
        StackError: The stack does not run or has no such component.
    """
    _expect_component(data_dir, name)
    (Layout(data_dir).suspended / name).touch()
    _wait_state(data_dir, name, ("stopped",), timeout_s)


def kill(data_dir: Path, name: str, *, timeout_s: float = 30.0) -> None:
    """Kill one component of a running stack (SIGKILL) and leave it dead until `resume`.

    Raises:
        StackError: The stack does not run or has no such component, or it is not running.
    """
    _expect_component(data_dir, name)
    process = read_status(data_dir).component(name).process
    if process is None or not is_alive(process):
        raise StackError(f"{name} does not run", remedy="kstream-agg stack status shows how it is")
    os.kill(process.pid, signal.SIGKILL)
    # Told now, not before: the supervisor would have asked it to end in good order.
    (Layout(data_dir).suspended / name).touch()
    _wait_state(data_dir, name, ("stopped",), timeout_s)


def resume(data_dir: Path, name: str, *, timeout_s: float = 120.0) -> None:
    """Start a suspended component again and wait until it is ready.

    Raises:
        StackError: The stack does not run or has no such component.
        UnavailableError: It is still not ready after `timeout_s`.
    """
    _expect_component(data_dir, name)
    (Layout(data_dir).suspended / name).unlink(missing_ok=True)
    _wait_state(data_dir, name, ("ready", "done"), timeout_s)


def _expect_component(data_dir: Path, name: str) -> None:
    status = read_status(data_dir)
    if not status.is_running:
        raise StackError(f"no stack runs on {data_dir}", remedy="start one: kstream-agg stack up")
    status.component(name)


def _wait_state(data_dir: Path, name: str, states: tuple[str, ...], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (component := read_status(data_dir).component(name)).state not in states:
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{name} is still {component.state} after {timeout_s:.0f} s: {component.detail}",
                remedy=f"see {Layout(data_dir).log(name)}",
            )
        time.sleep(_LOOK_S)


def _refuse_running(data_dir: Path) -> None:
    status = read_status(data_dir)
    if status.supervisor is not None:
        raise StackError(
            f"the {status.profile} stack on {data_dir} already runs "
            f"(supervisor pid {status.supervisor.pid})",
            remedy="'kstream-agg stack status' shows it, 'kstream-agg stack down' ends it",
        )


def _refuse_other_kind(layout: Layout, plan: Plan) -> Kind:
    """What is simulated must never be mistaken for the market."""
    kind = kind_of(plan.profile)
    before = read_kind(layout) or kind
    if kind != before:
        raise StackError(
            f"{layout.folder} holds the data of a {before} stack, "
            f"a {plan.profile} stack must not mix with it",
            remedy="name another folder with --data-dir, or empty it: 'kstream-agg stack reset'",
        )
    return kind


def _refuse_other_brokers(layout: Layout, plan: Plan) -> None:
    """A quorum of other size would not find its data."""
    before = read_plan(layout.plan) if layout.cluster_id.exists() else None
    if before is None or before.brokers == plan.brokers:
        return
    raise StackError(
        f"{layout.folder} holds the data of {before.brokers} brokers, not of {plan.brokers}",
        remedy=f"start it with --brokers {before.brokers}, name another folder with --data-dir, or "
        "empty it: 'kstream-agg stack reset'",
    )


def _is_data_folder(layout: Layout) -> bool:
    """Whether a stack was planned there, or nothing is there but what a stack writes."""
    brokers = map(broker_name, range(1, MAX_BROKERS + 1))
    return layout.plan.exists() or layout.holds_only((*COMPONENT_NAMES, *brokers))


def _end_orphans(data_dir: Path) -> list[str]:
    """End components whose supervisor is gone."""
    left = [(c.name, c.process) for c in read_status(data_dir).components if c.process]
    end_processes([process for _, process in left], timeout_s=_ORPHAN_S)
    return [name for name, _ in left]


def _start_supervisor(layout: Layout) -> None:
    command = [sys.executable, "-m", "kstream_agg", "stack", "supervise", str(layout.folder)]
    with layout.log("supervisor").open("ab") as log:
        # It forks itself away and returns: no child of ours is left to wait for.
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=True,
        )
    deadline = time.monotonic() + 30
    while not read_status(layout.folder).is_running:
        if time.monotonic() > deadline:
            raise StackError(
                "the stack's supervisor did not start", remedy=f"see {layout.log('supervisor')}"
            )
        time.sleep(_LOOK_S)
