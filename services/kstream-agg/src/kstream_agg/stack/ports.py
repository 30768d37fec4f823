"""Ports that are taken, and by whom."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING, NamedTuple

import psutil

from kstream_agg.core.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.stack.component import Component
    from kstream_agg.stack.settings import PortSettings

__all__ = [
    "BrokerPorts",
    "bootstrap_servers",
    "broker_ports",
    "check_ports",
    "free_block",
    "free_ports",
    "is_taken",
    "port_holder",
]


_FREE_FROM, _FREE_TO = 20_000, 32_000


class BrokerPorts(NamedTuple):
    """Where a broker listens: to clients, and as a controller."""

    clients: int
    controller: int


def broker_ports(ports: PortSettings, number: int) -> BrokerPorts:
    """A broker's ports.

    Args:
        ports: The table `[ports]`.
        number: The broker's, from 1 on.
    """
    if number == 1:
        return BrokerPorts(ports.kafka, ports.kafka_controller)
    first = ports.kafka_more + 2 * (number - 2)
    return BrokerPorts(first, first + 1)


def bootstrap_servers(ports: PortSettings, brokers: int) -> str:
    """All brokers' addresses for clients, with commas."""
    numbers = range(1, brokers + 1)
    return ",".join(f"127.0.0.1:{broker_ports(ports, number).clients}" for number in numbers)


def is_taken(port: int) -> bool:
    """Whether somebody listens on the port, on loopback or all addresses."""
    with socket.socket() as sock:
        # As the servers do: connections that only wait to be forgotten don't count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def port_holder(port: int) -> str | None:
    """The program that listens on the port, such as `postgres (pid 812)`; None if unknown."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS shows other users' sockets to root only
        return None
    for connection in connections:
        if not connection.laddr or connection.status != psutil.CONN_LISTEN:
            continue
        matches = connection.laddr.port == port
        if matches and connection.pid is not None:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return None
    return None


def check_ports(components: Iterable[Component]) -> None:
    """See that every port is free before anything starts.

    Raises:
        StackError: Some are taken: names each, the component that wants it and the holder.
    """
    problems = []
    for component in components:
        for setting, port in component.ports.items():
            if is_taken(port):
                holder = port_holder(port) or "a program of another user"
                problems.append(
                    f"port {port} of {component.name} ([ports] {setting}) is taken by {holder}"
                )
    if problems:
        raise StackError(
            "; ".join(problems),
            remedy="end that program, set another port in config/stack/default.toml, "
            "or shift all ports: --port-offset 20000",
        )


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, all different.

    They lie below the range from which systems give numbers to outgoing connections: those would
    take one before its server starts.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.randint(_FREE_FROM, _FREE_TO)  # noqa: S311 - nothing to keep secret
        if port not in chosen and not is_taken(port):
            chosen.append(port)
    return chosen


def free_block(count: int) -> int:
    """The first of so many neighbouring ports nobody listens on now; as `free_ports`."""
    while True:
        first = random.randint(_FREE_FROM, _FREE_TO - count)  # noqa: S311 - nothing to keep secret
        if not any(is_taken(port) for port in range(first, first + count)):
            return first
