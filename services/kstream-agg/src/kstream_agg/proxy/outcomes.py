"""What becomes of a record, and the answer a request gets from its records' outcomes.

| status | when |
|---|---|
| 200 | every record is delivered (waiting) or delivered or on disk (not waiting) |
| 207 | some records failed, or failed for different reasons: `errors` has one entry a record |
| 400, 401, 403, 404, 408, 413, 422, 429, 431, 503, 504 | every record failed for that reason |

`http.status_codes: reference` answers as kafka-proxy did: a request that does not wait is always
200, one that waits is 200 or 500; only a malformed body, an unknown path or a refused key differ.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["OK", "Answer", "Failure", "answer", "failure_of", "is_final", "refusal"]

_OK_ENTRY: Final = {"status": "ok", "error": ""}
_RETRY_AFTER_S: Final = 1

# What Kafka says of a record that no repetition can deliver, and the status it stands for.
_FINAL: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: 404,
    KafkaError._UNKNOWN_TOPIC: 404,
    KafkaError._UNKNOWN_PARTITION: 404,
    KafkaError.TOPIC_EXCEPTION: 422,
    KafkaError.MSG_SIZE_TOO_LARGE: 413,
    KafkaError.RECORD_LIST_TOO_LARGE: 413,
    KafkaError.INVALID_RECORD: 422,
    KafkaError.INVALID_MSG: 422,
    KafkaError.INVALID_TIMESTAMP: 422,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: 403,
    KafkaError.POLICY_VIOLATION: 422,
}
_NOT_IN_TIME: Final = frozenset({KafkaError._MSG_TIMED_OUT, KafkaError.REQUEST_TIMED_OUT})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record was not taken.

    Args:
        status: The HTTP status it stands for.
        message: One sentence.
        retry_after_s: When trying again makes sense, in seconds; None where it does not.
    """

    status: int
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = field(default=())


OK: Final = Answer(200, b'{"status":"ok","errors":[]}')
"""Every record is taken."""


def failure_of(error: KafkaError, topic: str) -> Failure:
    """What an error of librdkafka means to the client."""
    code = error.code()
    if code in _FINAL:
        return Failure(_FINAL[code], f"Kafka refuses the record for topic '{topic}': {error.str()}")
    if code in _NOT_IN_TIME:
        return Failure(
            504, f"Kafka has not confirmed the record for topic '{topic}' in time", _RETRY_AFTER_S
        )
    return Failure(
        503, f"Kafka does not take the record for topic '{topic}': {error.str()}", _RETRY_AFTER_S
    )


def is_final(error: KafkaError) -> bool:
    """Whether sending the record again cannot help."""
    return error.code() in _FINAL


def refusal(failure: Failure) -> Answer:
    """The answer to a request that failed as a whole."""
    entry = {"status": "error", "error": failure.message}
    return Answer(failure.status, _body([entry]), _retry_headers([failure]))


def answer(
    count: int, failures: Mapping[int, Failure], *, waited: bool, as_reference: bool
) -> Answer:
    """The answer to a request.

    Args:
        count: How many records it had.
        failures: Those that were not taken, by their place.
        waited: Whether the client waited for the delivery.
        as_reference: Answer with the original's status codes.
    """
    if not failures or (as_reference and not waited):
        return OK
    entries = [
        _OK_ENTRY
        if (failure := failures.get(index)) is None
        else {"status": "error", "error": failure.message}
        for index in range(count)
    ]
    found = {failure.status for failure in failures.values()}
    if as_reference:
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
    elif len(failures) == count and len(found) == 1:
        (status,) = found
    else:
        status = HTTPStatus.MULTI_STATUS.value
    return Answer(status, _body(entries), _retry_headers(failures.values()))


def _body(entries: list[dict[str, str]]) -> bytes:
    # Printed as the standard library does it, non-ASCII escaped: any client can read it.
    return json.dumps({"status": "error", "errors": entries}, separators=(",", ":")).encode()


def _retry_headers(failures: Iterable[Failure]) -> tuple[tuple[str, str], ...]:
    waits = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
    if not waits:
        return ()
    return (("retry-after", str(max(1, math.ceil(max(waits))))),)
