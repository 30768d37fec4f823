"""Kafka Connect's REST API.

https://kafka.apache.org/documentation/#connect_rest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import httpx2

from kstream_agg.core.errors import ContractError, UnavailableError
from kstream_agg.kafka.topic_reader import TopicPart

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["ConnectClient", "ConnectorStatus", "TaskStatus", "parse_status"]

_CONFLICT: Final = 409  # a rebalance is in progress: ask again
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """One task: its state and, where it failed, why: in one line, and as Java's stack trace."""

    number: int
    state: str
    reason: str | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectorStatus:
    """A connector and its tasks; state `ABSENT` where Connect does not know it."""

    name: str
    state: str
    tasks: tuple[TaskStatus, ...] = ()
    reason: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether the connector and all its tasks, at least one, run."""
        states = [self.state, *(task.state for task in self.tasks)]
        return len(self.tasks) > 0 and all(state == "RUNNING" for state in states)

    @property
    def has_failed(self) -> bool:
        """Whether the connector or one of its tasks has given up."""
        return "FAILED" in [self.state, *(task.state for task in self.tasks)]

    @property
    def is_stopped(self) -> bool:
        """Whether it is stopped for good: no task of it is left."""
        return self.state == "STOPPED" and not self.tasks

    @property
    def failed_tasks(self) -> tuple[TaskStatus, ...]:
        """The tasks that have given up."""
        return tuple(task for task in self.tasks if task.state == "FAILED")

    @property
    def failure(self) -> str | None:
        """Why it does not run, where Connect says so."""
        reasons = [self.reason, *(task.reason for task in self.tasks)]
        return next((reason for reason in reasons if reason), None)


class ConnectClient:
    """Talks to one Connect worker; use as a context manager.

    Args:
        url: Its REST address.
        timeout_s: Longest wait for one answer.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._http = httpx2.Client(base_url=self._url, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def names(self) -> list[str]:
        """Names of the connectors."""
        return [str(name) for name in self._ask("GET", "/connectors")]

    def config(self, name: str) -> dict[str, str] | None:
        """A connector's configuration; None when there is no such connector."""
        found: dict[str, str] | None = self._ask("GET", f"/connectors/{name}/config")
        return found

    def put_config(self, name: str, config: Mapping[str, str]) -> None:
        """Create the connector or change its configuration.

        Raises:
            ContractError: Connect refuses the configuration; the message says why.
        """
        self._ask("PUT", f"/connectors/{name}/config", dict(config))

    def restart_failed(self, name: str) -> None:
        """Restart the connector's failed instance and tasks."""
        self._ask("POST", f"/connectors/{name}/restart?includeTasks=true&onlyFailed=true")

    def stop(self, name: str) -> None:
        """End the connector's tasks; it stays, with its configuration and offsets."""
        self._ask("PUT", f"/connectors/{name}/stop")

    def resume(self, name: str) -> None:
        """Let a stopped or paused connector run again."""
        self._ask("PUT", f"/connectors/{name}/resume")

    def offsets(self, name: str) -> dict[TopicPart, int]:
        """The next offset of each partition that a sink has committed."""
        found = self._ask("GET", f"/connectors/{name}/offsets") or {}
        return {
            TopicPart(
                str(item["partition"]["kafka_topic"]), int(item["partition"]["kafka_partition"])
            ): int(item["offset"]["kafka_offset"])
            for item in found.get("offsets", ())
        }

    def alter_offsets(self, name: str, offsets: Mapping[TopicPart, int]) -> None:
        """Set a stopped sink's next offsets; partitions that are not named stay where they are.

        Raises:
            ContractError: It is not stopped.
            UnavailableError: One of its tasks has not left its consumer group yet.
        """
        items = [
            {
                "partition": {"kafka_topic": part.topic, "kafka_partition": part.partition},
                "offset": {"kafka_offset": offset},
            }
            for part, offset in offsets.items()
        ]
        self._ask("PATCH", f"/connectors/{name}/offsets", {"offsets": items})

    def delete(self, name: str) -> None:
        """Remove the connector; its consumer group's offsets stay."""
        self._ask("DELETE", f"/connectors/{name}")

    def status(self, name: str) -> ConnectorStatus:
        """The connector's and its tasks' states."""
        return parse_status(name, self._ask("GET", f"/connectors/{name}/status"))

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - whatever JSON the API gives
        try:
            answer = self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise UnavailableError(
                f"Kafka Connect at {self._url} does not answer: {error}",
                remedy="start the stack with `make run` or `make demo`, or set "
                "KSTREAM__CONNECT__URL",
            ) from error
        except httpx2.InvalidURL as error:
            raise ContractError(f"'{self._url}' is not an address: {error}") from error
        if answer.status_code == _NOT_FOUND:
            return None
        if answer.status_code >= 500 or answer.status_code == _CONFLICT:
            raise UnavailableError(f"Kafka Connect at {self._url}: {_message(answer)}")
        if answer.is_error:
            raise ContractError(f"Kafka Connect refuses {method} {path}: {_message(answer)}")
        return answer.json() if answer.content else None


def parse_status(name: str, found: Mapping[str, Any] | None) -> ConnectorStatus:
    """What the API's JSON says of a connector; None stands for one that it does not know."""
    if found is None:
        return ConnectorStatus(name, "ABSENT")
    tasks = tuple(
        TaskStatus(task["id"], task["state"], _reason(task.get("trace")), task.get("trace"))
        for task in found["tasks"]
    )
    connector = found["connector"]
    return ConnectorStatus(name, connector["state"], tasks, _reason(connector.get("trace")))


def _message(answer: httpx2.Response) -> str:
    try:
        found = answer.json()
    except ValueError:
        return f"HTTP {answer.status_code}"
    text = found.get("message") if isinstance(found, dict) else None
    return " ".join(str(text or f"HTTP {answer.status_code}").split())


def _reason(trace: str | None) -> str | None:
    """The last cause of a Java stack trace: the outer ones only say that something failed."""
    if not trace:
        return None
    lines = trace.splitlines()
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes or lines)[-1].strip() if causes else lines[0].strip()
