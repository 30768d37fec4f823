"""/metrics, /healthz and /readyz of a service, on a small HTTP server of their own.

- `/metrics`: OpenMetrics text.
- `/healthz`: 200 while every check passes, else 503. A check says whether its part makes
  progress: a consumer that stands still with records to read is unhealthy.
- `/readyz`: 200 once the service has declared itself ready, and as long as it is healthy.
- `POST` on what a service offers besides (`Health.add_action`): JSON in, JSON out. With
  `http.action_token` only for who knows it; without it only where the server listens on a
  loopback address: whoever else reaches the port must not be able to put a service to work.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from kstream_agg.core.errors import KStreamError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from kstream_agg.core.metrics import Metrics
    from kstream_agg.core.settings import HttpSettings

__all__ = ["Action", "Health", "HealthServer", "is_loopback"]

Action: TypeAlias = "Callable[[dict[str, Any]], dict[str, Any]]"
_MAX_BODY_BYTES: Final = 65_536


class Health:
    """What a service knows of its own state. Safe to use from any thread."""

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], str | None]] = {}
        self._actions: dict[str, Action] = {}
        self._not_ready: str | None = "starting"

    def add_check(self, name: str, check: Callable[[], str | None]) -> None:
        """Add a check: it returns None while all is well, else a sentence that says what is not."""
        self._checks[name] = check

    def add_action(self, path: str, action: Action) -> None:
        """Offer an action to operators.

        Args:
            path: Where, e.g. `/backfill`.
            action: Takes a JSON object and gives one; a `KStreamError` is the caller's mistake.
        """
        self._actions[path] = action

    def action(self, path: str) -> Action | None:
        """The action offered at a path."""
        return self._actions.get(path)

    def set_ready(self) -> None:
        """The service has reached all it needs and works."""
        self._not_ready = None

    def set_not_ready(self, reason: str) -> None:
        """The service waits for something; `reason` says for what."""
        self._not_ready = reason

    def problems(self) -> dict[str, str]:
        """The failing checks and what they say; empty when healthy."""
        found: dict[str, str] = {}
        for name, check in list(self._checks.items()):
            said = check()
            if said is not None:
                found[name] = said
        return found

    def not_ready(self) -> str | None:
        """Why the service is not ready; None when it is."""
        return self._not_ready


class HealthServer:
    """Serves a service's metrics and health; a context manager.

    Args:
        settings: Address; port 0 takes a free one, `port` then tells which.
        metrics: What `/metrics` shows.
        health: What `/healthz` and `/readyz` ask.

    Raises:
        UnavailableError: The port is taken.
        SettingsError: The token's file cannot be read.
    """

    def __init__(self, settings: HttpSettings, metrics: Metrics, health: Health) -> None:
        token = settings.read_action_token()
        handler = _make_handler(metrics, health, _Guard(token, is_open=is_loopback(settings.host)))
        try:
            self._server = ThreadingHTTPServer((settings.host, settings.port), handler)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve /metrics on {settings.host}:{settings.port}: {error.strerror}",
                remedy="end the program that holds the port, or set KSTREAM__HTTP__PORT",
            ) from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        # How long the end of a service waits for this thread, at most (s).
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="health", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Guard:
    """Who may call actions.

    Args:
        token: What a call must carry; None where none is set.
        is_open: Whether calls are taken without a token.
    """

    def __init__(self, token: str | None, *, is_open: bool) -> None:
        self._token = token.encode() if token is not None else None
        self._is_open = is_open

    def refusal(self, authorization: str | None) -> tuple[int, dict[str, object]] | None:
        """Status and content of the answer to a call that is not taken; None: it is taken."""
        if self._token is None:
            if self._is_open:
                return None
            return 403, {
                "error": "actions are taken on a loopback address only, unless a token is set",
                "remedy": "set http.action_token for this service and whoever calls it",
            }
        scheme, _, given = (authorization or "").partition(" ")
        # Headers come as Latin-1.
        if scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("latin-1", "replace"), self._token
        ):
            return None
        return 401, {
            "error": "the token is missing or wrong",
            "remedy": "set http.action_token (KSTREAM__HTTP__ACTION_TOKEN) as the service has it",
        }


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _make_handler(metrics: Metrics, health: Health, guard: _Guard) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "kstream-agg"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                body = generate_latest(metrics.registry)  # type: ignore[no-untyped-call]  # has no hints
                self._answer(200, body, CONTENT_TYPE_LATEST)
            elif path == "/healthz":
                problems = health.problems()
                self._answer_json(503 if problems else 200, {"problems": problems})
            elif path == "/readyz":
                problems = health.problems()
                reason = health.not_ready()
                ready = not problems and reason is None
                self._answer_json(
                    200 if ready else 503, {"waiting_for": reason, "problems": problems}
                )
            else:
                self._answer_json(404, {"error": "try /metrics, /healthz or /readyz"})

        def do_POST(self) -> None:
            action = health.action(self.path.partition("?")[0])
            if action is None:
                self._answer_json(404, {"error": "there is no such action"})
                return
            refusal = guard.refusal(self.headers.get("Authorization"))
            if refusal is not None:
                self._answer_json(*refusal)
                return
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
                self._answer_json(413, {"error": "a JSON object of at most 64 kB is expected"})
                return
            try:
                wanted = json.loads(self.rfile.read(int(length)))
                if not isinstance(wanted, dict):
                    raise ValueError("it is no object")  # noqa: TRY301, TRY004 - as other bad JSON
                self._answer_json(200, action(wanted))
            except ValueError as error:
                self._answer_json(400, {"error": f"the body is not a JSON object: {error}"})
            except KStreamError as error:
                self._answer_json(400, {"error": str(error), "remedy": error.remedy})

        def _answer_json(self, status: int, content: dict[str, object]) -> None:
            self._answer(status, json.dumps(content).encode() + b"\n", "application/json")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            """Scrapes are not news."""

    return Handler
