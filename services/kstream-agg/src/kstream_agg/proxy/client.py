"""A client of the push proxy: lines in, requests out, what is not taken is tried again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx2

from kstream_agg.core.errors import DeliveryError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["PushClient", "PushOptions"]

_AGAIN: Final = frozenset({429, 503, 504})
_REQUEST_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How lines become requests.

    Args:
        topic: Where to.
        wait: Wait until Kafka has confirmed each request's records.
        batch: Records in a request at most.
        key_separator: What divides a line into key and data; None: lines have no key.
        patience_s: How long to try again while the proxy says "later", in seconds.
    """

    topic: str
    wait: bool = True
    batch: int = 500
    key_separator: str | None = None
    patience_s: float = 60.0


class PushClient:
    """Pushes lines; a context manager.

    Args:
        url: The proxy, without a path.
        api_key: The API key, where one is needed.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, url: str, api_key: str | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        headers = {"X-API-Key": api_key} if api_key else {}
        self._url = f"{url.rstrip('/')}/push"
        self._client = httpx2.Client(headers=headers, timeout=_REQUEST_TIMEOUT_S)
        self._sleep = sleep

    def push_lines(self, lines: Iterable[str], options: PushOptions) -> Iterator[int]:
        """Push lines, each a record.

        Yields:
            After each request, how many records it held.

        Raises:
            DeliveryError: The proxy refuses a record; the message says which line and why.
            UnavailableError: The proxy does not answer, or says "later" for too long.
        """
        first = 1
        batch: list[dict[str, Any]] = []
        for line in lines:
            batch.append(_record(line.rstrip("\n"), options))
            if len(batch) >= options.batch:
                yield self._push(batch, first, options)
                first += len(batch)
                batch = []
        if batch:
            yield self._push(batch, first, options)

    def __enter__(self) -> PushClient:  # noqa: PYI034 - final in practice
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def _push(self, records: list[dict[str, Any]], first: int, options: PushOptions) -> int:
        """Push until every record is taken; only what failed for a passing reason goes again."""
        left = list(enumerate(records, start=first))
        waited = 0.0
        while True:
            body = {"records": [record for _line, record in left], "wait_for_send": options.wait}
            answer = self._post(body)
            if answer.status_code == httpx2.codes.OK:
                return len(records)
            left, why = _to_do_again(answer, left)
            pause = float(answer.headers.get("retry-after", 1))
            if waited + pause > options.patience_s:
                raise UnavailableError(
                    f"the proxy does not take line {left[0][0]} for {waited:.0f} s: {why}",
                    remedy="is Kafka running? push again from this line on",
                )
            self._sleep(pause)
            waited += pause

    def _post(self, body: dict[str, Any]) -> httpx2.Response:
        try:
            return self._client.post(self._url, json=body)
        except httpx2.HTTPError as error:
            raise UnavailableError(
                f"the push proxy at {self._url} does not answer: {error}",
                remedy="start it: kstream-agg push-proxy; or name another one with --url",
            ) from error


def _record(line: str, options: PushOptions) -> dict[str, Any]:
    if options.key_separator is not None and options.key_separator in line:
        key, _, line = line.partition(options.key_separator)
        return {"topic": options.topic, "key": key, "data": line}
    return {"topic": options.topic, "data": line}


def _to_do_again(
    answer: httpx2.Response, sent: list[tuple[int, dict[str, Any]]]
) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """The records that failed for a passing reason, and that reason.

    Raises:
        DeliveryError: One failed for good.
    """
    try:
        entries = answer.json()["errors"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"what answers with status {answer.status_code} is no push proxy"
        ) from error
    if answer.status_code in _AGAIN and len(entries) == 1:
        entries = entries * len(sent)  # the request was refused as a whole
    failed = [
        (line, record, entry["error"])
        for (line, record), entry in zip(sent, entries, strict=False)
        if entry["status"] != "ok"
    ]
    line, why = (failed[0][0], failed[0][2]) if failed else (sent[0][0], answer.text)
    passing = answer.status_code in _AGAIN or "retry-after" in answer.headers
    if not passing or not failed:
        raise DeliveryError(f"line {line} is refused ({answer.status_code}): {why}")
    return [(number, record) for number, record, _why in failed], why
