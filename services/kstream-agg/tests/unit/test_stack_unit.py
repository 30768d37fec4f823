from __future__ import annotations

import signal
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.clock import ManualClock
from kstream_agg.stack.component import Component
from kstream_agg.stack.settings import RestartSettings
from kstream_agg.stack.state import ProcessId
from kstream_agg.stack.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.stack.state import ComponentStatus


class Inline(Executor):
    """Does what is submitted at once."""

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN201 - as its base class
        future = Future()  # type: ignore[var-annotated]  # of whatever the callable gives
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future carries it, as an executor's does
            future.set_exception(error)
        return future


class FakeProcess:
    def __init__(self, pid: int, *, stubborn: bool) -> None:
        self.identity = ProcessId(pid, 1.0)
        self.code: int | None = None
        self.signals: list[signal.Signals] = []
        self.error: str | None = None
        self._stubborn = stubborn

    def poll(self) -> int | None:
        return self.code

    def last_error(self) -> str | None:
        return self.error

    def send_signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL or not self._stubborn:
            self.code = -number


class FakeLauncher:
    def __init__(self) -> None:
        self.started: list[tuple[str, FakeProcess]] = []
        self.stubborn = False
        self.error: OSError | None = None

    def start(self, component: Component) -> FakeProcess:
        if self.error:
            raise self.error
        process = FakeProcess(100 + len(self.started), stubborn=self.stubborn)
        self.started.append((component.name, process))
        return process

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.started]


class World:
    """A supervisor over fakes: components are ready when `answers` says so."""

    def __init__(self, *components: Component) -> None:
        self.clock = ManualClock()
        self.launcher = FakeLauncher()
        restart = RestartSettings(backoff_initial_s=1, backoff_max_s=4, stable_s=60)
        self.supervisor = Supervisor(components, self.launcher, Inline(), self.clock, restart)

    def go(self, seconds: float = 0.0, *, suspended: tuple[str, ...] = ()) -> None:
        """Let time pass; enough looks for everything that needs no further time."""
        self.clock.advance(seconds)
        for _ in range(8):
            self.supervisor.tick(suspended)

    def state(self, name: str) -> str:
        return self.status(name).state

    def status(self, name: str) -> ComponentStatus:
        return next(u for u in self.supervisor.units if u.component.name == name).status()

    def process(self, name: str) -> FakeProcess:
        return [process for each, process in self.launcher.started if each == name][-1]


def make(
    name: str,
    *,
    needs: tuple[str, ...] = (),
    probe: Callable[[], str | None] | None = lambda: None,
    group: int = 0,
    prepare: Callable[[], None] | None = None,
    initialise: Callable[[], None] | None = None,
) -> Component:
    return Component(
        name=name,
        argv=("/bin/true",),
        probe=probe,
        env={},
        cwd=Path("/"),
        depends_on=needs,
        stop_group=group,
        stop_timeout_s=20,
        prepare=prepare,
        initialise=initialise,
    )


def test_starts_only_when_what_it_needs_is_ready() -> None:
    answers = ["not yet"]
    world = World(make("kafka", probe=lambda: answers[-1] or None), make("sink", needs=("kafka",)))
    world.go()
    assert world.launcher.names == ["kafka"]
    assert world.status("sink").detail == "for kafka"
    answers.append("")
    world.go(0.2)
    world.go()
    assert (world.state("kafka"), world.state("sink")) == ("ready", "ready")
    assert world.launcher.names == ["kafka", "sink"]


def test_says_why_it_is_not_ready() -> None:
    world = World(make("kafka", probe=lambda: "its port is not open yet"))
    world.go()
    status = world.status("kafka")
    assert (status.state, status.detail) == ("starting", "its port is not open yet")


def test_dead_component_is_started_again_ever_later() -> None:
    world = World(make("kafka", probe=lambda: "no"))
    world.go()
    pauses = []
    for _ in range(4):
        world.process("kafka").code = 1
        world.go()
        status = world.status("kafka")
        assert status.state == "backoff"
        assert status.detail == "ended with exit code 1"
        assert status.next_start is not None
        pause = status.next_start - world.clock.now_ms() / 1000
        pauses.append(round(pause))
        world.go(pause - 0.2)
        assert world.state("kafka") == "backoff"
        world.go(0.3)
        assert world.state("kafka") == "starting"
    assert pauses == [1, 2, 4, 4]
    assert world.status("kafka").restarts == 4


def test_backoff_begins_anew_after_a_stable_run() -> None:
    world = World(make("kafka"))
    world.go()
    for _ in range(3):
        world.process("kafka").code = -9
        world.go()
        world.go(5)
    world.go(61)
    world.process("kafka").code = -9
    world.go()
    status = world.status("kafka")
    assert status.detail == "ended by SIGKILL"
    assert status.next_start is not None
    assert round(status.next_start - world.clock.now_ms() / 1000) == 1


def test_others_stay_when_one_dies() -> None:
    world = World(make("kafka"), make("sink", needs=("kafka",)))
    world.go()
    world.go()
    world.process("kafka").code = 1
    world.go()
    assert (world.state("kafka"), world.state("sink")) == ("backoff", "ready")


def test_failing_preparation_is_tried_again() -> None:
    calls = []

    def prepare() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no room")

    world = World(make("kafka", prepare=prepare))
    world.go()
    assert (world.state("kafka"), world.status("kafka").detail) == ("backoff", "no room")
    world.go(1.1)
    assert world.state("kafka") == "ready"


def test_program_that_cannot_be_started_is_said() -> None:
    world = World(make("kafka"))
    world.launcher.error = FileNotFoundError(2, "No such file or directory")
    world.go()
    assert world.status("kafka").detail == "cannot be started: No such file or directory"


def test_initialised_once_before_others_may_use_it() -> None:
    calls: list[str] = []

    def initialise() -> None:
        calls.append("initialise")
        if len(calls) == 1:
            raise OSError("not now")

    world = World(make("registry", initialise=initialise), make("sink", needs=("registry",)))
    world.supervisor.tick()
    world.supervisor.tick()
    assert world.launcher.names == ["registry"]
    world.go()
    world.go(0.2)
    world.go()
    assert world.state("sink") == "ready"
    world.process("registry").code = 1
    world.go()
    world.go(1.1)
    assert world.state("registry") == "ready"
    assert calls == ["initialise", "initialise"]


def test_unhealthy_after_two_failed_answers_and_ready_again() -> None:
    answers: list[str | None] = [None]
    world = World(make("kafka", probe=lambda: answers[-1]))
    world.go()
    answers.append("hangs")
    world.go(5)
    assert world.state("kafka") == "ready"
    world.go(1)
    assert (world.state("kafka"), world.status("kafka").detail) == ("unhealthy", "hangs")
    answers.append(None)
    world.go(1)
    assert world.state("kafka") == "ready"


@pytest.mark.parametrize(("code", "state"), [(0, "done"), (1, "backoff")])
def test_one_shot(code: int, state: str) -> None:
    world = World(make("connectors", probe=None), make("next", needs=("connectors",)))
    world.go()
    assert world.state("next") == "waiting"
    world.process("connectors").code = code
    world.go()
    world.go()
    assert world.state("connectors") == state
    assert world.launcher.names.count("next") == (code == 0)


def test_what_a_program_said_at_its_end_is_kept_until_it_is_ready() -> None:
    answers: list[str | None] = ["its port is not open yet"]
    world = World(make("raw-producer", probe=lambda: answers[-1]))
    world.go()
    world.process("raw-producer").error = "no such channel (remedy: name another)"
    world.process("raw-producer").code = 1
    world.go()
    died = "ended with exit code 1: no such channel (remedy: name another)"
    assert world.status("raw-producer").detail == died
    world.go(1.1)
    status = world.status("raw-producer")
    assert status.state == "starting"
    assert status.detail == f"its port is not open yet; before: {died}"
    answers.append(None)
    world.go(0.3)
    world.go()
    assert (world.state("raw-producer"), world.status("raw-producer").detail) == ("ready", "")


def test_what_a_one_shot_component_has_made_is_looked_at() -> None:
    answers: list[str | None] = [None]
    watched = replace(make("connectors", probe=None), watch=lambda: answers[-1])
    world = World(watched, make("next", needs=("connectors",)))
    answers.append("asked too early")
    world.go(20)
    assert (world.state("connectors"), world.status("connectors").detail) == ("starting", "")
    answers.append(None)
    world.process("connectors").code = 0
    world.go()
    world.go(5)
    assert world.state("connectors") == "done"
    answers.append("sink: task 0 is FAILED")
    world.go(5)
    assert world.state("connectors") == "done"
    world.go(1)
    status = world.status("connectors")
    assert (status.state, status.detail) == ("unhealthy", "sink: task 0 is FAILED")
    assert not status.is_healthy
    answers.append(None)
    world.go(1)
    assert (world.state("connectors"), world.status("connectors").detail) == ("done", "")
    assert world.launcher.names == ["connectors", "next"]
    world.supervisor.stop()
    world.go()
    assert world.supervisor.is_stopped


def test_stops_group_by_group() -> None:
    world = World(make("kafka", group=3), make("connect", group=1), make("service"))
    world.go()
    world.launcher.stubborn = True
    world.supervisor.stop()
    world.supervisor.tick()
    assert [world.process(n).signals for n in ("service", "connect", "kafka")] == [
        [signal.SIGTERM],
        [],
        [],
    ]
    world.go()
    assert world.supervisor.is_stopped


def test_one_that_does_not_end_is_killed_and_that_is_said() -> None:
    world = World(make("kafka"))
    world.launcher.stubborn = True
    world.go()
    world.supervisor.stop()
    world.go()
    world.go(19)
    assert world.state("kafka") == "stopping"
    world.go(1)
    assert world.process("kafka").signals == [signal.SIGTERM, signal.SIGKILL]
    assert world.status("kafka").detail == "killed: it did not end in 20 s"
    assert world.supervisor.is_stopped


def test_second_stop_kills_at_once() -> None:
    world = World(make("kafka", group=3), make("service"))
    world.launcher.stubborn = True
    world.go()
    world.supervisor.stop()
    world.go()
    world.supervisor.stop()
    world.go()
    assert world.supervisor.is_stopped
    assert world.process("kafka").signals[-1] == signal.SIGKILL


def test_suspended_component_stands_still_until_it_may_go_on() -> None:
    world = World(make("postgres"))
    world.go()
    world.go(suspended=("postgres",))
    assert world.state("postgres") == "stopped"
    world.go(30, suspended=("postgres",))
    assert world.launcher.names == ["postgres"]
    world.go()
    assert (world.state("postgres"), world.launcher.names) == ("ready", ["postgres"] * 2)
