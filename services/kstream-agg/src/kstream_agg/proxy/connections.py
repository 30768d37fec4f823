"""What all connections of a worker share, and how an answer is written."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from kstream_agg.proxy.outcomes import OK, Answer, Failure, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kstream_agg.proxy.accepting import Acceptor
    from kstream_agg.proxy.handler import Handler

__all__ = ["PREFLIGHT", "ConnectionRules", "ConnectionState", "not_allowed", "render"]

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
PREFLIGHT: Final = (
    ("access-control-allow-methods", "POST"),
    ("access-control-allow-headers", "authorization, content-type, traceparent, x-api-key"),
    ("access-control-max-age", "3600"),
)


class Connection(Protocol):
    """What the shared state asks of a connection."""

    def check_time(self, now: float) -> None:
        """End the connection when its client has been too slow."""


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """The settings a connection goes by; sizes in bytes, times in seconds."""

    max_body_bytes: int
    max_header_bytes: int
    max_connections: int
    max_buffered_bytes: int
    request_timeout_s: float
    keep_alive_s: float
    cors_origins: tuple[str, ...] = ()


class ConnectionState:
    """What all connections of a worker share.

    Args:
        handler: Serves `POST /push`.
        pages: What GET gives, by path: content type and body.
        rules: What connections go by.
        monotonic: Seconds on a clock that never goes back.
        acceptor: Takes further connections from the listening socket.
    """

    def __init__(
        self,
        handler: Handler,
        pages: Mapping[bytes, tuple[str, bytes]],
        rules: ConnectionRules,
        monotonic: Callable[[], float],
        acceptor: Acceptor | None = None,
    ) -> None:
        self.acceptor = acceptor
        self.handler = handler
        self.pages = pages
        self.rules = rules
        self._monotonic = monotonic
        self.connections: set[Connection] = set()
        self.buffered_bytes = 0
        self._cors = {
            origin.encode(): (("access-control-allow-origin", origin), ("vary", "origin"))
            for origin in rules.cors_origins
        }
        self.now = monotonic()
        """The time of the last tick: exact enough for time-outs of seconds."""
        self.ok = b""
        self.date = ""

    def cors_headers(self, origin: bytes | None) -> tuple[tuple[str, str], ...]:
        """What lets a browser show the answer to a page of this origin."""
        if origin is None or not self._cors:
            return ()
        return self._cors.get(origin) or self._cors.get(b"*") or ()

    def tick(self, date: str) -> None:
        """Once a second: the new date, and an end to those who are too slow."""
        self.date = date
        self.ok = render(OK, date, keep_alive=True)
        self.now = now = self._monotonic()
        for connection in list(self.connections):
            connection.check_time(now)


def not_allowed(allowed: str) -> Answer:
    """The answer to a method that is not served."""
    made = refusal(Failure(405, f"this takes {allowed}"))
    return Answer(made.status, made.body, (("allow", allowed),))


def render(made: Answer, date: str, *, keep_alive: bool, without_body: bool = False) -> bytes:
    """An answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {made.status} {_REASONS.get(made.status, 'Unknown')}", f"date: {date}"]
    if not any(name == "content-type" for name, _value in made.headers):
        lines.append("content-type: application/json")
    lines.append(f"content-length: {len(made.body)}")
    lines += [f"{name}: {value}" for name, value in made.headers]
    if not keep_alive:
        lines.append("connection: close")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if without_body else head + made.body
