"""/metrics, /healthz and /readyz over real HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import pytest

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.health import Health, HealthServer
from kstream_agg.core.metrics import DEAD_LETTERS, RECORDS_IN_FLIGHT, Metrics
from kstream_agg.core.settings import HttpSettings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def client(health: Health, metrics: Metrics) -> Iterator[httpx2.Client]:
    with (
        HealthServer(HttpSettings(), metrics, health) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client,
    ):
        yield client


def test_metrics_are_openmetrics(client: httpx2.Client, metrics: Metrics) -> None:
    metrics.counter(DEAD_LETTERS).labels("t", "decode").inc(3)
    metrics.gauge(RECORDS_IN_FLIGHT).set(7)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert 'kstream_dead_letters_total{stage="decode",topic="t"} 3.0' in answer.text
    assert "kstream_records_in_flight 7.0" in answer.text
    assert "process_resident_memory_bytes" in answer.text
    assert answer.text.endswith("# EOF\n")


def test_ready_only_when_declared_and_healthy(client: httpx2.Client, health: Health) -> None:
    problem: list[str | None] = [None]
    health.add_check("consumer", lambda: problem[0])
    assert client.get("/readyz").status_code == 503
    health.set_not_ready("the schema registry")
    assert client.get("/readyz").json()["waiting_for"] == "the schema registry"
    health.set_ready()
    assert client.get("/readyz").status_code == 200
    assert client.get("/healthz").status_code == 200
    problem[0] = "no progress for 60 s"
    assert client.get("/healthz").status_code == 503
    assert client.get("/healthz").json() == {"problems": {"consumer": "no progress for 60 s"}}
    assert client.get("/readyz").status_code == 503


def test_unknown_paths_name_the_known_ones(client: httpx2.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 404
    assert "/metrics" in answer.text


def test_a_taken_port_is_one_sentence(health: Health, metrics: Metrics) -> None:
    with (
        HealthServer(HttpSettings(), metrics, health) as first,
        pytest.raises(UnavailableError, match=str(first.port)),
    ):
        HealthServer(HttpSettings(port=first.port), Metrics(), health)


def test_one_definition_makes_one_metric() -> None:
    metrics = Metrics()
    assert metrics.counter(DEAD_LETTERS) is metrics.counter(DEAD_LETTERS)
