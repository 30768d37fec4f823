"""`run --detach` does not wait for an exchange that cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kstream_agg.cli import run as cli_run
from kstream_agg.cli.tools import output
from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.stack import control
from kstream_agg.stack.state import ComponentState, ComponentStatus, StackStatus

if TYPE_CHECKING:
    from collections.abc import Callable

DETAIL = "no session with the exchange at wss://nobody.example: no such host"


def stack(raw_producer: ComponentState, connect: ComponentState = "ready") -> StackStatus:
    components = tuple(
        ComponentStatus(
            name=name,
            state=state,
            process=None,
            restarts=0,
            detail=DETAIL if name == "raw-producer" else "",
            since=0.0,
            next_start=None,
            ports={},
            address="",
        )
        for name, state in (("connect", connect), ("raw-producer", raw_producer))
    )
    return StackStatus("live", None, stopping=False, started_at=0.0, components=components)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the module under test; the test sets it."""
    now = [1000.0]
    monkeypatch.setattr("kstream_agg.cli.run.time.monotonic", lambda: now[0])
    return now


def play(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], course: list[tuple[float, StackStatus]]
) -> None:
    """Let `wait_ready` see one status after the other, at its time."""

    def wait_ready(
        data_dir: Path, *, timeout_s: float, watch: Callable[[StackStatus], None]
    ) -> StackStatus:
        del data_dir, timeout_s
        for at, status in course:
            seconds[0] = 1000.0 + at
            watch(status)
        raise AssertionError("it waited on")

    monkeypatch.setattr(control, "wait_ready", wait_ready)
    monkeypatch.setattr(control, "read_status", lambda _: course[-1][1])
    cli_run._wait(Path("nowhere"), output())


def test_half_a_minute_without_the_exchange_ends_the_wait_with_the_reason_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    course = [(0.0, stack("starting")), (29.0, stack("starting")), (31.0, stack("starting"))]
    with pytest.raises(UnavailableError, match="no session with the exchange") as caught:
        play(monkeypatch, seconds, course)
    assert caught.value.remedy is not None
    assert "make demo" in caught.value.remedy


def test_while_others_start_too_the_exchange_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    course = [(0.0, stack("starting", "starting")), (50.0, stack("starting")),
              (79.0, stack("starting"))]  # fmt: skip
    with pytest.raises(AssertionError, match="it waited on"):
        play(monkeypatch, seconds, course)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KSTREAM__EXCHANGE__HEARTBEAT_INTERVAL_S", "1"),
        ("KSTREAM__WINDOW__PERIOD", "soon"),
        ("KSTREAM__SIMULATOR__SPEED", "fast"),
        ("KSTREAM__CHANNELS", "book.BTC-PERPETUAL.100ms"),
    ],
)
def test_a_wrong_setting_of_any_service_is_named_before_anything_starts(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KSTREAM__DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KSTREAM__CHANNELS", "trades.option.BTC.100ms")  # the command may set it
    monkeypatch.setenv(variable, value)
    said = CliRunner().invoke(cli_run.demo, ["--detach"])
    assert isinstance(said.exception, SettingsError)
    assert variable in str(said.exception)
    assert not (tmp_path / "data").exists()
