"""What the supervisor knows of a component: data and a few functions, no process."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Account", "Component"]


@dataclass(frozen=True, slots=True)
class Account:
    """Under which user a component runs when the supervisor is root.

    Attributes:
        uid: The user's number.
        gid: The group's number.
        traverse: Let it pass folders that only root may enter.
    """

    uid: int
    gid: int
    traverse: bool = False


@dataclass(frozen=True, slots=True)
class Component:
    """One process of the stack.

    Attributes:
        name: Its token, also of its log file.
        argv: The program and its arguments.
        probe: Asked until it returns None, and now and then afterwards. None for a one-shot
            component: done when it exits with 0.
        watch: Of a one-shot component that is done: asked now and then whether what it has made
            still stands.
        env: The environment it gets, all of it.
        cwd: Its working directory.
        ports: What it listens on, by the name of the setting.
        depends_on: Components that must be ready (one-shot ones: done) before it starts.
        check: Run once before anything of the stack starts; raises when it could not work.
        prepare: Run before each start; may take its time and raise.
        initialise: Run when it is ready for the first time, before others may use it.
        stop_signal: Asks it to end in good order.
        stop_timeout_s: How long that may take before it is killed.
        stop_group: Groups end one after the other, the lowest first.
        account: Its user; None for the supervisor's own.
        address: What to open or connect to, for people.
    """

    name: str
    argv: tuple[str, ...]
    probe: Callable[[], str | None] | None
    env: Mapping[str, str]
    cwd: Path
    watch: Callable[[], str | None] | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    check: Callable[[], None] | None = None
    prepare: Callable[[], None] | None = None
    initialise: Callable[[], None] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 20.0
    stop_group: int = 0
    account: Account | None = None
    address: str = ""
