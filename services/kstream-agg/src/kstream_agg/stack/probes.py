"""Asking components whether they are ready.

Several times a second while a stack starts on a busy machine: plain HTTP from the standard
library, because a full client spends more time on preparing TLS than these servers on the answer.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from kstream_agg.sinks.connect_api import parse_status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kstream_agg.sinks.connect_api import ConnectorStatus

__all__ = ["http_probe", "kafka_probe", "readiness_probe", "sinks_probe"]

_TIMEOUT_S = 3.0
_MEND_SINKS = "mend the cause, then run 'kstream-agg connectors apply'"


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
        # Another broker may answer for it, from what it remembers, before it is registered anew.
        known = any(broker.port == port for broker in metadata.brokers.values())
        return None if known else "it is not registered yet"

    return probe


def http_probe(port: int, path: str) -> Callable[[], str | None]:
    """Ready when a GET is answered with 200."""

    def probe() -> str | None:
        try:
            status, _ = _get(port, path)
        except (OSError, http.client.HTTPException) as error:
            return _no_answer(error)
        return None if status == http.client.OK else f"answers {status}"

    return probe


def readiness_probe(port: int) -> Callable[[], str | None]:
    """Ready when one of our own services says so at /readyz; passes on what it waits for."""

    def probe() -> str | None:
        try:
            status, body = _get(port, "/readyz")
            answer = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return _no_answer(error)
        if status == http.client.OK:
            return None
        reasons = [str(answer.get("waiting_for") or "")]
        reasons += [f"{name}: {said}" for name, said in (answer.get("problems") or {}).items()]
        return "; ".join(filter(None, reasons)) or f"answers {status}"

    return probe


def sinks_probe(port: int, names: Sequence[str]) -> Callable[[], str | None]:
    """Well when Connect runs these connectors and all their tasks; says which one it does not."""

    def probe() -> str | None:
        try:
            status, body = _get(port, "/connectors?expand=status")
            answer = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"Connect: {_no_answer(error)}"
        if status != http.client.OK:  # it does not know while its workers rebalance
            return f"Connect answers {status}"
        found = [parse_status(name, answer.get(name, {}).get("status")) for name in names]
        broken = [_explain_sink(sink) for sink in found if not sink.is_running]
        return "; ".join([*broken, _MEND_SINKS]) if broken else None

    return probe


def _explain_sink(sink: ConnectorStatus) -> str:
    states = [f"is {sink.state}"] if sink.state != "RUNNING" else []
    states += [f"task {t.number} is {t.state}" for t in sink.tasks if t.state != "RUNNING"]
    said = f"{sink.name}: {', '.join(states) or 'has no task'}"
    return f"{said} ({sink.failure})" if sink.failure else said


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _no_answer(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "its port is not open yet"
    return f"no answer yet ({type(error).__name__})"
