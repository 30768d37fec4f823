"""What is committed with an offset, and where a restart begins."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kstream_agg.aggregate.progress_note import Resume, commit_point, resume_from
from kstream_agg.aggregate.rules import WindowRules
from kstream_agg.aggregate.runs import Trades
from kstream_agg.aggregate.state import PartitionState
from kstream_agg.pipeline.processor import CommitPoint, Partition

PARTITION = Partition("trades", 0)
RULES = WindowRules(period_ms=10_000, grace_ms=0, lateness_ms=500, skew_ms=0, alpha=0.5)


def state_after(*times: int) -> PartitionState:
    state = PartitionState(RULES, str)
    count = len(times)
    state.apply(
        Trades(
            offset=np.arange(7, 7 + count, dtype=np.int64),
            instrument=np.zeros(count, dtype=np.int32),
            trade_seq=np.arange(count, dtype=np.int64),
            timestamp=np.array(times, dtype=np.int64),
            received_at=np.array(times, dtype=np.int64),
            price=np.ones(count),
            amount=np.ones(count),
        )
    )
    return state


def test_the_offset_is_the_oldest_open_windows_first_trade() -> None:
    point = commit_point(state_after(1_000, 12_000, 13_000), 10_000)
    assert point.offset == 8
    assert json.loads(point.metadata) == {"p": 10, "w": 12_500, "period": 10}


def test_without_a_trade_there_is_no_watermark() -> None:
    state = PartitionState(RULES, str)
    state.advance(4)
    point = commit_point(state, 10_000)
    assert point == CommitPoint(4, '{"p":4,"w":null,"period":10}')
    assert resume_from(PARTITION, point, 4, 10_000) == Resume(4, 4)


def test_a_restart_takes_offset_position_and_watermark() -> None:
    point = commit_point(state_after(1_000, 12_000), 10_000)
    assert resume_from(PARTITION, point, 9, 10_000) == Resume(8, 9, 11_500)


def test_an_offset_set_by_hand_is_a_beginning_without_a_past() -> None:
    assert resume_from(PARTITION, CommitPoint(5), 9, 10_000) == Resume(5, 5)


@pytest.mark.parametrize(
    ("committed", "end", "period_ms"),
    [
        (None, 9, 10_000),
        (CommitPoint(5, "else"), 9, 10_000),
        (CommitPoint(5, '{"p": "x"}'), 9, 10_000),
        (CommitPoint(5, '{"p":9,"w":1,"period":10}'), 8, 10_000),  # the topic was made anew
        (CommitPoint(5, '{"p":9,"w":1,"period":10}'), 9, 60_000),  # other windows
    ],
)
def test_otherwise_it_begins_at_the_beginning(
    committed: CommitPoint | None, end: int, period_ms: int
) -> None:
    assert resume_from(PARTITION, committed, end, period_ms) == Resume(None, 0)


def test_the_note_stays_far_below_the_brokers_limit() -> None:
    point = CommitPoint(0, json.dumps({"p": 2**63, "w": -(2**63), "period": 2**63}))
    assert len(point.metadata) < 4_096
