"""What a member does with the states of its partitions when it takes, keeps and loses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from kstream_agg.aggregate.intake import Instruments
from kstream_agg.aggregate.keeping import StateKeeper
from kstream_agg.aggregate.kept import POSITION_KEY, note_in
from kstream_agg.aggregate.rules import EwmaRules, WindowRules, Windows
from kstream_agg.aggregate.runs import Trades
from kstream_agg.core.errors import ContractError, FencedError
from kstream_agg.core.metrics import Metrics
from kstream_agg.pipeline.processor import CommitPoint, Partition

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.aggregate.state import PartitionState

PARTITION = Partition("trades", 0)
END = 100


def rules_of(period_ms: int = 10_000) -> WindowRules:
    return WindowRules(
        families=(Windows(period_ms, period_ms),),
        grace_ms=0,
        lateness_ms=0,
        skew_ms=0,
        retention_ms=20_000,
        ewma=EwmaRules(0.5),
    )


class Topic:
    """A changelog topic in memory; `steps` is what was done with it, in order."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.steps: list[str] = []

    def name(self, partition: Partition) -> str:
        return f"group-{partition.topic}-changelog"

    def write(self, partition: Partition, key: bytes, value: bytes | None) -> None:
        assert partition == PARTITION
        self.steps.append(f"{'drop' if value is None else 'write'} {key.decode()}")
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def fence(self, owner: str) -> None:
        self.steps.append(f"fence {owner}")

    def read(self, partitions: Iterable[Partition]) -> dict[Partition, dict[bytes, bytes]]:
        self.steps.append("read")
        return {partition: dict(self.values) for partition in partitions}


def keeper_of(topic: Topic, owner: str | None, rules: WindowRules | None = None) -> StateKeeper:
    return StateKeeper(
        log=topic,
        rules=rules or rules_of(),
        instruments=Instruments(),
        owner=owner,
        before_write=lambda: topic.steps.append("flush"),
        metrics=Metrics(CollectorRegistry()),
    )


def taken(
    keeper: StateKeeper, committed: CommitPoint | None = None
) -> tuple[PartitionState, int | None]:
    keeper.take_over([PARTITION])
    return keeper.state_of(PARTITION, committed, END)


def apply(state: PartitionState, keeper: StateKeeper, *times: int) -> None:
    count, first = len(times), state.position
    instrument = keeper._instruments[b"BTC-A"]
    state.apply(
        Trades(
            offset=np.arange(first, first + count, dtype=np.int64),
            instrument=np.full(count, instrument, dtype=np.int32),
            trade_seq=np.arange(first, first + count, dtype=np.int64),
            timestamp=np.array(times, dtype=np.int64),
            received_at=np.array(times, dtype=np.int64),
            price=np.ones(count),
            amount=np.ones(count),
        )
    )


def test_only_what_has_changed_is_written_the_position_behind_it_and_what_is_gone_last() -> None:
    topic = Topic()
    keeper = keeper_of(topic, "a")
    state, start = taken(keeper)
    assert start is None
    apply(state, keeper, 1_000, 12_000)
    assert keeper.keep(PARTITION, state, giving_up=False)
    assert topic.steps[1:] == [
        "flush",
        "write BTC-A|0|10s",
        "write BTC-A|10000|10s",
        "write BTC-A|ewma",
        "write position",
    ]
    assert not keeper.keep(PARTITION, state, giving_up=False)
    topic.steps.clear()
    apply(state, keeper, 33_000)
    keeper.keep(PARTITION, state, giving_up=False)
    assert topic.steps == [
        "flush",
        "write BTC-A|30000|10s",
        "write BTC-A|10000|10s",
        "write BTC-A|ewma",
        "write position",
        "drop BTC-A|0|10s",
    ]
    assert set(topic.values) == {
        b"BTC-A|10000|10s",
        b"BTC-A|30000|10s",
        b"BTC-A|ewma",
        POSITION_KEY,
    }


def test_a_member_signs_on_and_off_and_one_that_has_not_signed_off_is_fenced() -> None:
    topic = Topic()
    first = keeper_of(topic, "a")
    state, _ = taken(first)
    assert first.keep(PARTITION, state, giving_up=False)  # signs on, though nothing was read
    second = keeper_of(topic, "b")
    topic.steps.clear()
    taken(second, CommitPoint(0))
    assert topic.steps == ["read", "fence a", "read"]
    second.keep(PARTITION, state, giving_up=True)
    third = keeper_of(topic, "c")
    topic.steps.clear()
    taken(third, CommitPoint(0))
    assert topic.steps == ["read"]
    # Its own assignment, again, after a commit that failed.
    third.keep(PARTITION, state, giving_up=False)
    topic.steps.clear()
    taken(third, CommitPoint(0))
    assert topic.steps == ["read"]


def test_a_member_that_lost_partitions_ends_only_when_another_has_them() -> None:
    topic = Topic()
    first = keeper_of(topic, "a")
    state, _ = taken(first)
    first.keep(PARTITION, state, giving_up=False)
    first.check_lost([PARTITION])
    second = keeper_of(topic, "b")
    state, _ = taken(second, CommitPoint(0))
    second.keep(PARTITION, state, giving_up=False)
    with pytest.raises(FencedError, match="taken this one's partitions over"):
        first.check_lost([PARTITION])


def kept_at_two(owner: str | None = "a") -> Topic:
    topic = Topic()
    keeper = keeper_of(topic, owner)
    state, _ = taken(keeper)
    apply(state, keeper, 1_000, 2_000)
    keeper.keep(PARTITION, state, giving_up=True)
    return topic


def test_a_state_goes_on_where_the_offset_stands() -> None:
    keeper = keeper_of(kept_at_two(), "b")
    state, start = taken(keeper, CommitPoint(2))
    assert (start, state.position, state.open_windows) == (2, 2, 1)


@pytest.mark.parametrize("committed", [None, CommitPoint(1), CommitPoint(3), CommitPoint(101)])
def test_a_state_that_does_not_belong_to_the_offset_stops_the_member(
    committed: CommitPoint | None,
) -> None:
    with pytest.raises(ContractError, match="do not belong together") as caught:
        taken(keeper_of(kept_at_two(), "b"), committed)
    assert "group-trades-changelog" in str(caught.value.remedy)


def test_an_offset_without_a_state_stops_the_member() -> None:
    with pytest.raises(ContractError, match="do not belong together"):
        taken(keeper_of(Topic(), "b"), CommitPoint(7))


def test_a_topic_that_was_made_anew_stops_the_member() -> None:
    keeper = keeper_of(kept_at_two(), "b")
    keeper.take_over([PARTITION])
    with pytest.raises(ContractError, match="the partition's end 1"):
        keeper.state_of(PARTITION, CommitPoint(2), 1)


def test_without_transactions_the_state_may_be_ahead_of_the_offset() -> None:
    topic = kept_at_two(owner=None)
    note = note_in(topic.values)
    assert note is not None
    assert note.owner is None
    for committed in (None, CommitPoint(1), CommitPoint(2)):
        assert taken(keeper_of(topic, None), committed)[1] == 2
    with pytest.raises(ContractError):
        taken(keeper_of(topic, None), CommitPoint(3))


def test_other_windows_begin_at_the_beginning_and_drop_what_was_kept() -> None:
    topic = kept_at_two()
    keeper = keeper_of(topic, "b", rules_of(60_000))
    state, start = taken(keeper, CommitPoint(2))
    assert (start, state.position, state.open_windows) == (None, 0, 0)
    keeper.keep(PARTITION, state, giving_up=False)
    assert set(topic.values) == {POSITION_KEY}


@pytest.mark.parametrize(
    "record",
    [
        (b"BTC-A|x|10s", b"\x90"),
        (b"BTC-A|0|10s", b"no window"),
        (b"BTC-A|0|7s", b"\x90"),
        (b"BTC-A|ewma", b"\xa1x"),
        (POSITION_KEY, b"\x90"),
    ],
)
def test_a_changelog_that_cannot_be_read_stops_the_member(record: tuple[bytes, bytes]) -> None:
    topic = kept_at_two()
    topic.values[record[0]] = record[1]
    with pytest.raises(ContractError, match="cannot be read"):
        taken(keeper_of(topic, "b"), CommitPoint(2))
