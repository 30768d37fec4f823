"""Choosing dead letters, and reading what ours and Connect's headers say."""

from __future__ import annotations

import pytest

from kstream_agg.core.errors import SettingsError
from kstream_agg.kafka.dead_letters import (
    DeadLetter,
    LetterFilter,
    Place,
    Selection,
    parse_letter,
    parse_selection,
)
from kstream_agg.kafka.dlq import Origin, failure_headers
from kstream_agg.kafka.replays import identity_of
from kstream_agg.kafka.topic_reader import Record, Span, TopicPart


def letter(*headers: tuple[str, bytes | None]) -> DeadLetter:
    return parse_letter(Record(TopicPart("t-dlq", 0), 5, b"k", b"v", list(headers), 1_000))


def of_connect(**values: str) -> DeadLetter:
    names = {name: f"__connect.errors.{name.replace('_', '.')}" for name in values}
    return letter(*((names[name], text.encode()) for name, text in values.items()))


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("t-dlq", Selection("t-dlq")),
        ("t-dlq/3", Selection("t-dlq", 3)),
        ("t-dlq/3/17", Selection("t-dlq", 3, 17, 17)),
        ("t-dlq/3/17-20", Selection("t-dlq", 3, 17, 20)),
        ("t-dlq/3/17-", Selection("t-dlq", 3, 17)),
        ("a.b_c-1-dlq/0/0-0", Selection("a.b_c-1-dlq", 0, 0, 0)),
    ],
)
def test_selections(text: str, selection: Selection) -> None:
    assert parse_selection(text) == selection


@pytest.mark.parametrize("text", ["", "t/", "t/x", "t/1/2/3", "t/1/-2", "t u", "/0/1"])
def test_what_selects_nothing(text: str) -> None:
    with pytest.raises(SettingsError, match="names no dead letters"):
        parse_selection(text)


def test_a_selection_covers_its_offsets_and_no_others() -> None:
    chosen, stands = Selection("t", 1, 10, 20), Span(15, 30)
    assert chosen.span(TopicPart("t", 1), stands) == Span(15, 21)
    assert chosen.span(TopicPart("t", 0), stands) is None
    assert chosen.span(TopicPart("t", 1), Span(21, 30)) is None
    found = [n for n in range(30) if chosen.includes(Place("t", 1, n))]
    assert found == list(range(10, 21))


def test_our_headers() -> None:
    trace = ("traceparent", b"00-1")
    ours = failure_headers("CheckViolation", "no (SQLSTATE 23514)", "write", Origin("t", 1, 2, 3))
    headers = [(name, v if isinstance(v, bytes) else None) for name, v in ours]
    found = letter(trace, *headers, ("replayed.from", b"t-dlq/0/1"))
    assert found.origin == Origin("t", 1, 2, 3)
    assert (found.stage, found.error_class) == ("write", "CheckViolation")
    assert found.replayed_from == "t-dlq/0/1"
    assert found.original_headers() == [trace]


def test_a_letter_is_known_by_its_record_where_it_says_enough() -> None:
    ours = failure_headers("A", "b", "write", Origin("t", 1, 2, 3))
    headers = [(name, v if isinstance(v, bytes) else None) for name, v in ours]
    assert identity_of(letter(*headers)) == (Place("t", 1, 2), 3)
    its_own = (Place("t-dlq", 0, 5), 1_000)
    assert identity_of(of_connect(topic="t", partition="1", offset="2")) == its_own
    assert identity_of(letter()) == its_own


def test_connects_headers() -> None:
    found = of_connect(
        topic="t", partition="1", offset="2", stage="VALUE_CONVERTER",
        exception_class_name="a.b.DataException", exception_message="why",
    )  # fmt: skip
    assert found.origin == Origin("t", 1, 2, -1)
    assert found.message == "why"
    assert LetterFilter(origin="t", stage="value_converter", error="DataException").matches(found)
    assert not LetterFilter(origin="u").matches(found)
    assert found.original_headers() == []


def test_headers_that_only_look_like_ours() -> None:
    assert of_connect(topic="t", partition="one", offset="2").origin is None
    assert letter().origin is None


def test_times_choose_from_the_first_to_before_the_last() -> None:
    chosen = LetterFilter(since_ms=1_000, until_ms=1_001)
    assert chosen.matches(letter())
    assert not LetterFilter(since_ms=1_001).matches(letter())
    assert not LetterFilter(until_ms=1_000).matches(letter())
