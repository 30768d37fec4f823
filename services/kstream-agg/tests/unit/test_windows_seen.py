"""Trade numbers as intervals behave like a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.aggregate.windows import SeenSeqs


@given(st.lists(st.integers(0, 40)))
def test_it_behaves_like_a_set(numbers: list[int]) -> None:
    seen, wanted = SeenSeqs(), set[int]()
    for number in numbers:
        assert seen.add(number) == (number not in wanted)
        wanted.add(number)
        covered = [n for first, last in seen.intervals() for n in range(first, last + 1)]
        assert covered == sorted(wanted)
        gaps = zip(seen.intervals(), seen.intervals()[1:], strict=False)
        assert all(low[1] + 1 < high[0] for low, high in gaps)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=10))
def test_appended_numbers_are_there(steps: list[tuple[int, int]]) -> None:
    seen, at, wanted = SeenSeqs(), 0, list[int]()
    for gap, length in steps:
        seen.append(at + gap, at + gap + length - 1)
        wanted += range(at + gap, at + gap + length)
        at += gap + length
    assert [n for first, last in seen.intervals() for n in range(first, last + 1)] == wanted
    assert not any(seen.add(number) for number in wanted)
