"""The caller's trace goes on in the records' headers.

Most requests are not sampled: they get a `traceparent` of random ids, or the caller's trace id,
without a span being made.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanKind, Status, StatusCode

from kstream_agg.core.telemetry import (
    TRACEPARENT,
    context_from_headers,
    is_sampled,
    traceparent_header,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import Span, Tracer

__all__ = ["Tracing"]

_VALID: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_random_bits: Final = random.getrandbits


class Tracing:
    """Makes the records' `traceparent`s, and spans of the sampled requests.

    Args:
        tracer: Makes the spans; None makes none.
        ratio: Which part of the requests without a sampled caller gets one.
    """

    def __init__(self, tracer: Tracer | None, ratio: float) -> None:
        self._tracer = tracer
        self._ratio = ratio if tracer is not None else 0.0

    def begin(self, caller: bytes | None) -> tuple[bytes, Span | None]:
        """The `traceparent` of a request's records, and its span if it is sampled.

        Args:
            caller: The request's own `traceparent` header.
        """
        if caller is not None and _VALID.fullmatch(caller):
            if self._tracer is not None and is_sampled(caller):
                return self._span(caller)
            # The ids of the caller, a span of ours, and the caller's word on sampling.
            return b"%b-%016x-%b" % (caller[:35], _random_bits(64) or 1, caller[-2:]), None
        if self._ratio and random.random() < self._ratio:  # noqa: S311 - sampling is no secret
            return self._span(None)
        return b"00-%032x-%016x-00" % (_random_bits(128) or 1, _random_bits(64) or 1), None

    def is_sampled(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers may get a span."""
        if self._tracer is None:
            return False
        return bool(self._ratio) or is_sampled(headers.get(b"traceparent", b""))

    def end(self, span: Span, records: Sequence[Any], status: int) -> None:
        """End a request's span."""
        span.set_attribute("messaging.destination.name", records[0].topic if records else "")
        span.set_attribute("messaging.batch.message_count", len(records))
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _span(self, caller: bytes | None) -> tuple[bytes, Span]:
        assert self._tracer is not None  # noqa: S101 - the callers have looked
        context = context_from_headers([(TRACEPARENT, caller)]) if caller is not None else None
        span = self._tracer.start_span(
            "produce_to_kafka",
            context=context,
            kind=SpanKind.PRODUCER,
            attributes={"messaging.system": "kafka"},
        )
        return traceparent_header(span), span
