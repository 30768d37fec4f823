from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.health import Health, HealthServer
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.settings import HttpSettings
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.probes import http_probe, kafka_probe, readiness_probe

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
