"""When a sink is restarted or searched for a row, and its configuration there and back."""

from __future__ import annotations

import pytest

from kstream_agg.sinks.cases import Action, Case
from kstream_agg.sinks.causes import Cause, cause_of_state, cause_of_trace
from kstream_agg.sinks.connect_api import ConnectorStatus, TaskStatus
from kstream_agg.sinks.narrowing import is_narrowed, narrowed, records_at_once, widened
from kstream_agg.sinks.settings import WatchPolicy

REFUSED = """org.apache.kafka.connect.errors.ConnectException: Exiting WorkerSinkTask due to \
unrecoverable exception.
\tat org.apache.kafka.connect.runtime.WorkerSinkTask.deliverMessages(WorkerSinkTask.java:643)
Caused by: org.apache.kafka.connect.errors.ConnectException: JDBC sink connector failure
Caused by: org.hibernate.exception.ConstraintViolationException: Error executing work [Batch entry 0
Caused by: org.postgresql.util.PSQLException: ERROR: wird von jemandem verletzt
\t... 33 more
"""
AWAY = """org.apache.kafka.connect.errors.ConnectException: JDBC sink connector failure
Caused by: org.hibernate.exception.JDBCConnectionException: Unable to acquire JDBC Connection
Caused by: java.net.ConnectException: Connection refused
"""
ODD = """java.lang.IllegalStateException: text that names org.hibernate.exception.DataException
"""


def status(
    state: str = "RUNNING", task: str = "RUNNING", trace: str | None = None
) -> ConnectorStatus:
    return ConnectorStatus("s", state, (TaskStatus(0, task, None, trace),))


def failed(trace: str) -> ConnectorStatus:
    return status(task="FAILED", trace=trace)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("23514", Cause.DATA),
        ("22021", Cause.DATA),
        ("08006", Cause.PASSING),
        ("57P01", Cause.PASSING),
        ("53300", Cause.PASSING),
        ("42P01", Cause.UNKNOWN),
    ],
)
def test_sqlstates(state: str, cause: Cause) -> None:
    assert cause_of_state(state) is cause


def test_traces_are_told_apart_by_the_classes_thrown_and_never_by_their_messages() -> None:
    assert cause_of_trace(REFUSED) is Cause.DATA
    assert cause_of_trace(AWAY) is Cause.PASSING
    assert cause_of_trace(ODD) is Cause.UNKNOWN
    assert cause_of_trace(None) is Cause.UNKNOWN


def test_a_refused_row_is_looked_for_at_once() -> None:
    assert Case(WatchPolicy()).judge(failed(REFUSED), 0.0, is_narrowed=False) is Action.RESCUE


def test_a_rescue_that_was_ended_is_taken_up_whatever_the_state() -> None:
    case = Case(WatchPolicy())
    for state in (status(), status("STOPPED"), failed(AWAY)):
        assert case.judge(state, 0.0, is_narrowed=True) is Action.RESCUE


def test_what_passes_is_restarted_ever_more_slowly_and_searched_in_the_end() -> None:
    case = Case(WatchPolicy(backoff_initial_s=2, backoff_max_s=5, search_after=4))
    now, waits = 0.0, []
    for _ in range(4):
        assert case.judge(failed(AWAY), now, is_narrowed=False) is Action.RESTART
        waits.append(case.note_attempt(now))
        assert case.judge(failed(AWAY), now + waits[-1] - 0.1, is_narrowed=False) is Action.NOTHING
        now += waits[-1]
    assert waits == [2, 4, 5, 5]
    assert case.judge(failed(AWAY), now, is_narrowed=False) is Action.RESCUE
    assert case.trouble is not None


def test_a_sink_that_runs_long_enough_begins_anew() -> None:
    case = Case(WatchPolicy(backoff_initial_s=2, stable_s=60))
    case.judge(failed(AWAY), 0.0, is_narrowed=False)
    case.note_attempt(0.0)
    case.note_attempt(2.0)
    for now in (10.0, 69.0):
        assert case.judge(status(), now, is_narrowed=False) is Action.NOTHING
    before = case.trouble
    case.judge(status(), 70.0, is_narrowed=False)
    assert (before is None, case.trouble) == (False, None)
    assert case.note_attempt(80.0) == 2


def test_what_somebody_stopped_is_left_alone() -> None:
    case = Case(WatchPolicy())
    for state in ("STOPPED", "PAUSED"):
        found = ConnectorStatus("s", state)
        assert case.judge(found, 0.0, is_narrowed=False) is Action.NOTHING
    assert case.trouble is None


def test_a_connector_that_does_not_start_is_restarted_and_no_row_sought() -> None:
    case = Case(WatchPolicy(search_after=1))
    case.note_attempt(0.0)
    assert case.judge(status("FAILED"), 9.0, is_narrowed=False) is Action.RESTART


@pytest.mark.parametrize(
    "own",
    [
        {"name": "s", "batch.size": "1000", "consumer.override.max.poll.records": "2000"},
        {"name": "s"},
        {"consumer.override.max.partition.fetch.bytes": "99", "batch.size": "1"},
    ],
)
def test_the_configuration_comes_back_as_it_was(own: dict[str, str]) -> None:
    small = narrowed(own, 100)
    single = narrowed(small, 1)
    assert not is_narrowed(own)
    assert is_narrowed(small)
    assert (small["batch.size"], single["batch.size"]) == ("100", "1")
    assert (records_at_once(small), records_at_once(single)) == (100, 1)
    assert widened(small) == widened(single) == widened(own) == own


def test_what_a_poll_holds_where_nothing_is_said() -> None:
    assert records_at_once({}) == 500
