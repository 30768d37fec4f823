"""The proxy is ready once all its workers are: a connection goes to any of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kstream_agg.core.health import Health
from kstream_agg.proxy import service
from kstream_agg.proxy.tallies import Snapshot

if TYPE_CHECKING:
    import pytest


def worker(pid: int, not_ready: str | None = None) -> Snapshot:
    return Snapshot(pid, {}, {}, {}, {}, {}, {}, {}, [], not_ready)


class Turns:
    """Ends the watch once all turns are played, and notes what each has made of the health."""

    def __init__(self, health: Health, count: int) -> None:
        self._health = health
        self._left = count
        self.seen: list[str | None] = []

    def wait(self, _seconds: float) -> bool:
        self.seen.append(self._health.not_ready())
        self._left -= 1
        return self._left < 0


def test_ready_is_what_all_workers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        [],
        [worker(1)],  # the second one has not begun to tell
        [worker(1), worker(2, "Kafka")],
        [worker(1), worker(2)],
        [worker(1)],  # the second one has ended, and is started again
        [worker(1), worker(3, "Kafka")],
        [worker(1), worker(3)],
    ]
    coming = iter(answers)
    monkeypatch.setattr(service, "ask_workers", lambda _folder: (next(coming), []))
    health = Health()
    health.set_not_ready("starting")
    turns: Any = Turns(health, len(answers))
    service._watch(health, Path(), 2, turns)
    assert turns.seen[1:] == ["starting", "starting", "Kafka", None, None, "Kafka", None]
