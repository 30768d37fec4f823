"""Which trades a topic holds: every number is taken once, and what is missing is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.deribit.ledger import Admission, InstrumentLedger, Ledger, SeqRun

NAME = "BTC-PERPETUAL"


def numbers_of(runs: list[SeqRun]) -> set[int]:
    return {number for first, last in runs for number in range(first, last + 1)}


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1), st.data())
def test_what_is_taken_and_what_is_missing_is_all_there_is(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    ledger = Ledger()
    taken: set[int] = set()
    given_up: set[int] = set()
    for seq, claim in steps:
        admission = ledger.admit(NAME, seq, claim=claim)
        assert (admission is Admission.REPEAT) == (seq in taken)
        assert (admission is Admission.NEXT) == (not taken or seq > max(taken))
        taken.add(seq)
        if data.draw(st.booleans()):
            first, last = sorted((data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))))
            runs = ledger.give_up(NAME, first, last)
            assert all(first <= low <= high <= last for low, high in runs)
            given_up |= numbers_of(runs)
        entry = ledger.instruments[NAME]
        holes, gaps = numbers_of(entry.holes), numbers_of(entry.gaps)
        assert not holes & gaps
        assert holes | gaps | taken == set(range(min(taken), max(taken) + 1))
        assert given_up - taken <= gaps
        assert (entry.first, entry.highest) == (min(taken), max(taken))
        for runs in (entry.holes, entry.gaps):
            assert runs == sorted(runs)
            assert sum(high - low + 1 for low, high in runs) == len(numbers_of(runs))


def test_only_claimed_numbers_before_the_first_are_looked_for() -> None:
    entry = InstrumentLedger(100, 100)
    entry.admit(90, claim=False)
    assert (entry.holes, entry.gaps) == ([], [(91, 99)])
    entry.admit(80, claim=True)
    assert (entry.holes, entry.gaps) == ([(81, 89)], [(91, 99)])


def test_an_absurd_number_opens_no_hole_that_nobody_could_fill() -> None:
    entry = InstrumentLedger(1, 1)
    entry.admit(2**62, claim=True)
    assert entry.holes == []
    assert entry.admit(2, claim=True) is Admission.LATE


def test_only_what_changed_is_touched() -> None:
    ledger = Ledger()
    ledger.admit(NAME, 1)
    ledger.touched.clear()
    ledger.admit(NAME, 1)
    assert ledger.touched == set()
    ledger.admit(NAME, 2)
    assert ledger.touched == {NAME}
