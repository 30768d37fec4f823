"""Who the controller is: the leader of the metadata quorum, as only the quorum itself knows.

A metadata answer names any broker that can pass requests on as the controller; `DescribeQuorum`
(key 55, version 0) names the leader. https://kafka.apache.org/protocol#The_Messages_DescribeQuorum
"""

from __future__ import annotations

import socket
import struct
from typing import Final

__all__ = ["find_controller", "parse_leader", "quorum_request"]

_KEY: Final = 55
_TOPIC: Final = b"__cluster_metadata"
_NO_TAGS: Final = b"\x00"
_TIMEOUT_S: Final = 3.0


def find_controller(ports: list[int], timeout_s: float = _TIMEOUT_S) -> int | None:
    """The number of the active controller; None while there is none, or nobody answers.

    Args:
        ports: Of the brokers on this machine, asked one after the other.
        timeout_s: Longest wait for each, in seconds.
    """
    for port in ports:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
                connection.sendall(quorum_request())
                size = struct.unpack(">i", _read(connection, 4))[0]
                leader = parse_leader(_read(connection, size))
        except (OSError, ValueError, struct.error):
            continue
        if leader is not None:
            return leader
    return None


def quorum_request() -> bytes:
    """The request with its size: header version 2, one topic with its one partition."""
    header = struct.pack(">hhi", _KEY, 0, 1) + struct.pack(">h", -1) + _NO_TAGS
    partitions = _count(1) + struct.pack(">i", 0) + _NO_TAGS
    topics = _count(1) + _count(len(_TOPIC)) + _TOPIC + partitions + _NO_TAGS
    body = header + topics + _NO_TAGS
    return struct.pack(">i", len(body)) + body


def parse_leader(answer: bytes) -> int | None:
    """The leader's number in an answer; None when it names an error or no leader.

    Raises:
        ValueError: It is not an answer to our request.
        struct.error: It is cut off.
    """
    at = struct.calcsize(">i") + 1  # correlation id, no tags
    (failed,) = struct.unpack_from(">h", answer, at)
    if failed:
        return None
    at += 2
    # One topic of one partition: counts and lengths are below 127 and take a byte each.
    topics, length = answer[at] - 1, answer[at + 1] - 1
    name = answer[at + 2 : at + 2 + length]
    at += 2 + length
    if topics != 1 or name != _TOPIC or answer[at] - 1 != 1:
        raise ValueError("this is no answer to a question about the quorum")
    _, error, leader = struct.unpack_from(">ihi", answer, at + 1)
    return leader if not error and leader >= 0 else None


def _count(number: int) -> bytes:
    """A compact length: one more than it is, in a byte."""
    return bytes([number + 1])


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise ValueError("the broker has closed the connection")
        found += part
    return found
