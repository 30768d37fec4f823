"""Bodies of requests, and the answers made of outcomes."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from kstream_agg.proxy.outcomes import OK, Failure, answer, failure_of, is_final, refusal
from kstream_agg.proxy.requests import MalformedBodyError, Schema, decode_push

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)


def nest(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


JSON = st.recursive(LEAVES, nest, max_leaves=5)


def read(body: bytes) -> str | None:
    """What is wrong with a body, None when nothing is; any other exception is a defect."""
    try:
        decode_push(body)
    except MalformedBodyError as error:
        return str(error)
    return None


@given(values=st.lists(JSON, max_size=4), wait=st.sampled_from([True, False, None]))
def test_any_data_comes_out_as_it_went_in(values: list[object], *, wait: bool | None) -> None:
    request = {"records": [{"topic": "t", "data": v} for v in values], "wait_for_send": wait}
    decoded = decode_push(json.dumps(request).encode())
    assert decoded.wait is (wait is True)
    assert not decoded.failures
    for value, record in zip(values, decoded.records, strict=True):
        if value is None or isinstance(value, str):
            assert record.data == value
        else:
            assert json.loads(record.data) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(body: bytes) -> None:
    said = read(body)
    assert said is not None
    assert said.startswith("the ")


@given(st.integers(0, 70), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_is_read_or_refused_with_a_sentence(place: int, damage: bytes) -> None:
    body = b'{"records":[{"topic":"t","data":"x","key":null}],"wait_for_send":true}'
    assert read(body[:place] + damage + body[place:]) != ""


def test_schemas_keep_the_data_as_json() -> None:
    body = (
        b'{"records":[{"topic":"t","data":{"a":1},"schema_id":3},'
        b'{"topic":"t","data":"x","schema_subject":"s"},'
        b'{"topic":"t","data":"x","schema_subject":"s","schema_id":1},'
        b'{"topic":"t","data_base64":"eA==","schema_id":1},'
        b'{"topic":"t","data":"x","data_base64":"eA=="}]}'
    )
    decoded = decode_push(body)
    assert decoded.schemas[0] == Schema(None, 3)
    assert decoded.schemas[1] == Schema("s", None)
    assert [record.data for record in decoded.records[:2]] == [b'{"a":1}', b'"x"']
    assert {index: failure.status for index, failure in decoded.failures.items()} == {
        2: 422,
        3: 422,
        4: 422,
    }


def test_unknown_fields_are_passed_over_as_the_reference_did() -> None:
    decoded = decode_push(b'{"records":[{"topic":"t","data":"x","colour":1}],"more":2}')
    assert decoded.records[0].data == "x"
    assert decoded.wait is False


def test_all_good_is_the_references_answer() -> None:
    assert answer(3, {}, waited=True, as_reference=False) is OK
    assert json.loads(OK.body) == {"status": "ok", "errors": []}


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [([404, 404], 404), ([404, None], 207), ([404, 422], 207), ([503, 503], 503)],
)
def test_the_status_is_the_records_own_when_they_agree(
    statuses: list[int | None], expected: int
) -> None:
    failures = {i: Failure(s, "why") for i, s in enumerate(statuses) if s is not None}
    made = answer(2, failures, waited=False, as_reference=False)
    assert made.status == expected
    assert json.loads(made.body)["errors"] == [
        {"status": "ok", "error": ""} if s is None else {"status": "error", "error": "why"}
        for s in statuses
    ]


def test_the_reference_answers_200_or_500() -> None:
    failures = {0: Failure(404, "why")}
    assert answer(1, failures, waited=False, as_reference=True) is OK
    assert answer(1, failures, waited=True, as_reference=True).status == 500


def test_retry_after_is_the_longest_wait_in_whole_seconds() -> None:
    failures = {0: Failure(429, "a", 0.2), 1: Failure(429, "b", 4.1), 2: Failure(429, "c")}
    made = answer(3, failures, waited=True, as_reference=False)
    assert made.headers == (("retry-after", "5"),)
    assert refusal(Failure(429, "a", 0.2)).headers == (("retry-after", "1"),)
    assert refusal(Failure(400, "a")).headers == ()


@pytest.mark.parametrize(
    ("code", "status", "final"),
    [
        (KafkaError._MSG_TIMED_OUT, 504, False),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, 404, True),
        (KafkaError._UNKNOWN_TOPIC, 404, True),
        (KafkaError.MSG_SIZE_TOO_LARGE, 413, True),
        (KafkaError.NOT_ENOUGH_REPLICAS, 503, False),
        (KafkaError._ALL_BROKERS_DOWN, 503, False),
    ],
)
def test_kafkas_errors_have_their_status(code: int, status: int, final: bool) -> None:  # noqa: FBT001 - a parameter
    error = KafkaError(code)
    failure = failure_of(error, "t")
    assert failure.status == status
    assert is_final(error) is final
    assert (failure.retry_after_s is None) is final
