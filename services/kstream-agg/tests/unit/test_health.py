"""/metrics, /healthz and /readyz over real HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from pydantic import SecretStr

from kstream_agg.core.errors import SettingsError, UnavailableError
from kstream_agg.core.health import Health, HealthServer, is_loopback
from kstream_agg.core.metrics import DEAD_LETTERS, RECORDS_IN_FLIGHT, Metrics
from kstream_agg.core.settings import HttpSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
        httpx2.Client(
            base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=60
        ) as client,
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


@pytest.mark.parametrize(
    ("host", "token", "authorization", "status"),
    [
        ("127.0.0.1", None, None, 200),
        ("0.0.0.0", None, None, 403),  # noqa: S104 - what is tested
        ("0.0.0.0", None, "Bearer guessed", 403),  # noqa: S104 - what is tested
        ("0.0.0.0", "right", "Bearer right", 200),  # noqa: S104 - what is tested
        ("0.0.0.0", "right", "bearer  right", 200),  # noqa: S104 - what is tested
        ("0.0.0.0", "right", None, 401),  # noqa: S104 - what is tested
        ("127.0.0.1", "right", None, 401),
        ("127.0.0.1", "right", "Bearer wrong", 401),
        ("127.0.0.1", "right", "Basic right", 401),
    ],
)
def test_actions_ask_for_the_token_and_need_one_beyond_loopback(  # noqa: PLR0917 - a case's
    health: Health,
    metrics: Metrics,
    host: str,
    token: str | None,
    authorization: str | None,
    status: int,
) -> None:
    calls: list[dict[str, Any]] = []

    def act(wanted: dict[str, Any]) -> dict[str, Any]:
        calls.append(wanted)
        return {"calls": len(calls)}

    health.add_action("/act", act)
    settings = HttpSettings(host=host, action_token=SecretStr(token) if token else None)
    headers = {"Authorization": authorization} if authorization else {}
    with HealthServer(settings, metrics, health) as server:
        url = f"http://127.0.0.1:{server.port}"
        answer = httpx2.post(f"{url}/act", json={}, headers=headers, trust_env=False, timeout=60)
        assert httpx2.get(f"{url}/metrics", trust_env=False, timeout=60).status_code == 200
    assert answer.status_code == status
    assert len(calls) == (status == 200)
    assert status == 200 or answer.json()["remedy"]
    assert token is None or token not in repr(settings)


def test_the_token_comes_from_a_file_and_may_not_be_empty(
    health: Health, metrics: Metrics, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    settings = HttpSettings(action_token_file=file)
    for content, error in ((None, "cannot be read"), (" \n", "is empty")):
        if content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(SettingsError, match=error):
            HealthServer(settings, metrics, health)
    file.write_text("right\n", encoding="utf-8")
    assert settings.read_action_token() == "right"


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "", "pc")),  # noqa: S104 - as above
    ],
)
def test_loopback_addresses_are_known(host: str, is_one: bool) -> None:  # noqa: FBT001 - a case
    assert is_loopback(host) is is_one
