"""Figures of the pipeline, read from what the services really expose."""

from __future__ import annotations

from kstream_agg.core.health import Health, HealthServer
from kstream_agg.core.metrics import DEAD_LETTERS, SESSION_UP, TRADES_RECEIVED, Metrics
from kstream_agg.core.settings import HttpSettings, PostgresSettings
from kstream_agg.stack.figures import FiguresReader

NO_POSTGRES = PostgresSettings(port=1)


def test_counters_are_summed_over_labels_and_rates_are_differences() -> None:
    metrics = Metrics()
    trades = metrics.counter(TRADES_RECEIVED)
    metrics.gauge(SESSION_UP).set(1)
    metrics.counter(DEAD_LETTERS).labels("t", "decode").inc(2)
    metrics.counter(DEAD_LETTERS).labels("t", "validate").inc(3)
    now = [100.0]
    with (
        HealthServer(HttpSettings(), metrics, Health()) as server,
        FiguresReader([server.port], NO_POSTGRES, ["t"], lambda: now[0]) as reader,
    ):
        trades.labels("a").inc(10)
        first = reader.read()
        trades.labels("b").inc(30)
        now[0] += 2.0
        second = reader.read()
    assert (first.trades_received, first.trades_per_s) == (10.0, None)
    assert (second.trades_received, second.trades_per_s) == (40.0, 15.0)
    assert second.dead_letters == 5.0
    assert second.session_up is True
    assert second.rows is None


def test_what_does_not_answer_is_none() -> None:
    with FiguresReader([1], NO_POSTGRES, ["t"], lambda: 0.0) as reader:
        figures = reader.read()
    assert figures.trades_received is None
    assert figures.session_up is None
    assert figures.rows is None
