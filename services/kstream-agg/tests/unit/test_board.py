"""The status table says what state things are in."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from kstream_agg.cli.board import render
from kstream_agg.stack.figures import Figures
from kstream_agg.stack.state import ComponentState, ComponentStatus, StackStatus


def component(
    name: str, state: ComponentState, detail: str = "", restarts: int = 0
) -> ComponentStatus:
    return ComponentStatus(
        name=name,
        state=state,
        process=None,
        restarts=restarts,
        detail=detail,
        since=0.0,
        next_start=103.0 if state == "backoff" else None,
        ports={},
        address=f"{name}:1",
    )


def drawn(figures: Figures | None) -> str:
    status = StackStatus(
        profile="demo",
        supervisor=None,
        stopping=False,
        started_at=0.0,
        components=(
            component("kafka", "ready"),
            component("connect", "backoff", "ended by SIGKILL", restarts=2),
        ),
    )
    console = Console(file=StringIO(), width=120)
    console.print(render(status, figures, now_s=100.0, hint="Ctrl-C stops"))
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


def test_components_with_state_restarts_and_next_start() -> None:
    text = drawn(None)
    assert "kafka:1" in text
    assert "ended by SIGKILL; starts again in 3 s" in text
    assert "Ctrl-C stops" in text
    assert "trades received" not in text


def test_figures_with_estimated_rows_and_gaps() -> None:
    text = drawn(
        Figures(
            trades_received=1234.0,
            trades_per_s=20.04,
            source_lag_s=0.5,
            session_up=True,
            rows={"trades_option_btc": 1234, "big": -2_000_000},
        )
    )
    assert "1,234 (20.0/s)" in text
    assert "0.50 s old on arrival" in text
    assert "about 2,000,000" in text
    assert "- emitted" in text


def test_nothing_known_yet() -> None:
    text = drawn(Figures())
    assert "rows in Postgres" in text
    assert "down: trying again" in drawn(Figures(session_up=False))
