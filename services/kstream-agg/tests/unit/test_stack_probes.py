from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from kstream_agg.core.health import Health, HealthServer
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import HttpSettings
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.probes import http_probe, kafka_probe, readiness_probe, sinks_probe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def service() -> Iterator[tuple[Health, int]]:
    health = Health()
    with HealthServer(HttpSettings(), Metrics(), health) as server:
        yield health, server.port


def test_service_says_what_it_waits_for(service: tuple[Health, int]) -> None:
    health, port = service
    probe = readiness_probe(port)
    health.set_not_ready("the exchange")
    assert probe() == "the exchange"
    health.set_ready()
    assert probe() is None
    health.add_check("consumer", lambda: "stands still")
    assert probe() == "consumer: stands still"


def test_http_status_counts(service: tuple[Health, int]) -> None:
    _, port = service
    assert http_probe(port, "/healthz")() is None
    assert http_probe(port, "/none")() == "answers 404"


def test_nobody_there() -> None:
    (port,) = free_ports(1)
    probes = (http_probe(port, "/"), readiness_probe(port), kafka_probe(port))
    assert [probe() for probe in probes] == ["its port is not open yet"] * 3


RUNNING = {"connector": {"state": "RUNNING"}, "tasks": [{"id": 0, "state": "RUNNING"}]}
FAILED = {
    "connector": {"state": "RUNNING"},
    "tasks": [{"id": 0, "state": "FAILED", "trace": "A: outer\n at x\nCaused by: B: read-only"}],
}


class Connect(BaseHTTPRequestHandler):
    """Answers as Connect's REST API does with `expand=status`."""

    sinks: ClassVar[dict[str, Any]] = {}
    code: ClassVar = 200

    def do_GET(self) -> None:
        assert self.path == "/connectors?expand=status"
        body = json.dumps({name: {"status": status} for name, status in self.sinks.items()})
        self.send_response(self.code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        """Quiet."""


@pytest.fixture
def connect() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Connect) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"a": RUNNING, "b": RUNNING, "other": FAILED}, None),
        ({"a": RUNNING}, "b: is ABSENT"),
        ({"a": FAILED, "b": RUNNING}, "a: task 0 is FAILED (B: read-only)"),
        ({"a": RUNNING, "b": RUNNING | {"tasks": []}}, "b: has no task"),
        ({"a": {"connector": {"state": "PAUSED"}, "tasks": []}, "b": RUNNING}, "a: is PAUSED"),
    ],
)
def test_sink_that_does_not_run_is_named(
    found: dict[str, Any], said: str | None, connect: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connect, "sinks", found)
    answer = sinks_probe(connect, ["a", "b"])()
    expected = said and f"{said}; mend the cause, then run 'kstream-agg connectors apply'"
    assert answer == expected


def test_connect_that_knows_nothing_now_is_no_running_sink(
    connect: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connect, "code", 409)
    assert sinks_probe(connect, ["a"])() == "Connect answers 409"
    (port,) = free_ports(1)
    assert sinks_probe(port, ["a"])() == "Connect: its port is not open yet"
