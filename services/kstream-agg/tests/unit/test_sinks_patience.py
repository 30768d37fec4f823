"""Waiting for what is not there yet, and the end of patience."""

from __future__ import annotations

import threading

import pytest

from kstream_agg.core.clock import ManualClock
from kstream_agg.core.errors import UnavailableError
from kstream_agg.sinks.patience import Patience


class Attempts:
    """Fails so often, then answers; each attempt takes a second of the clock."""

    def __init__(self, clock: ManualClock, failures: int) -> None:
        self.clock = clock
        self.failures = failures
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        self.clock.advance(1)
        if self.made <= self.failures:
            raise UnavailableError("Postgres at 127.0.0.1:1 does not answer")
        return "there"


def test_it_tries_until_there_is_an_answer() -> None:
    clock = ManualClock()
    attempts = Attempts(clock, failures=3)
    patience = Patience(clock, threading.Event(), 60)
    assert patience.until_available("Postgres", attempts) == "there"
    assert attempts.made == 4


def test_when_patience_is_over_the_last_reason_is_told() -> None:
    clock = ManualClock()
    patience = Patience(clock, threading.Event(), 2)
    with pytest.raises(UnavailableError, match="does not answer"):
        patience.until_available("Postgres", Attempts(clock, failures=100))


def test_a_stop_ends_it_at_once() -> None:
    clock = ManualClock()
    stop = threading.Event()
    stop.set()
    attempts = Attempts(clock, failures=100)
    with pytest.raises(UnavailableError):
        Patience(clock, stop, 60).until_available("Postgres", attempts)
    assert attempts.made == 1
