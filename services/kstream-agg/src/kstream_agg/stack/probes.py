"""Asking components whether they are ready."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import httpx2
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["http_probe", "kafka_probe", "readiness_probe"]

_TIMEOUT_S = 3.0


def kafka_probe(port: int) -> Callable[[], str | None]:
    """Ready when the broker answers a metadata request with itself in it."""
    client: AdminClient | None = None

    def probe() -> str | None:
        nonlocal client
        # librdkafka backs off after a refused connection; asking the socket first does not.
        with socket.socket() as sock:
            sock.settimeout(_TIMEOUT_S)
            if sock.connect_ex(("127.0.0.1", port)) != 0:
                return "its port is not open yet"
        if client is None:
            client = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
        try:
            metadata = client.list_topics(timeout=_TIMEOUT_S)
        except KafkaException as error:
            return f"no metadata yet ({error.args[0].str()})"
        return None if metadata.brokers else "no broker is registered yet"

    return probe


def http_probe(url: str) -> Callable[[], str | None]:
    """Ready when a GET is answered with 200."""

    def probe() -> str | None:
        try:
            response = httpx2.get(url, timeout=_TIMEOUT_S, trust_env=False)
        except httpx2.HTTPError as error:
            return f"no answer yet ({type(error).__name__})"
        return None if response.status_code == httpx2.codes.OK else _status(response)

    return probe


def readiness_probe(port: int) -> Callable[[], str | None]:
    """Ready when one of our own services says so at /readyz; passes on what it waits for."""

    def probe() -> str | None:
        try:
            response = httpx2.get(
                f"http://127.0.0.1:{port}/readyz", timeout=_TIMEOUT_S, trust_env=False
            )
            answer = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            return f"no answer yet ({type(error).__name__})"
        if response.status_code == httpx2.codes.OK:
            return None
        reasons = [str(answer.get("waiting_for") or "")]
        reasons += [f"{name}: {said}" for name, said in (answer.get("problems") or {}).items()]
        return "; ".join(filter(None, reasons)) or _status(response)

    return probe


def _status(response: httpx2.Response) -> str:
    return f"answers {response.status_code}"
