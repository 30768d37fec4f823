"""The brokers of a running stack: how they are, and seeing to those that are dead."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import StackError, UnavailableError
from kstream_agg.core.settings import KafkaSettings
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.stack import control
from kstream_agg.stack.components.kafka import broker_name
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import read_plan
from kstream_agg.stack.ports import bootstrap_servers, broker_ports
from kstream_agg.stack.quorum import find_controller
from kstream_agg.stack.settings import PortSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kstream_agg.kafka.topics import ClusterDescription, PartitionDescription
    from kstream_agg.stack.state import ComponentStatus

__all__ = ["Brokers", "BrokersStatus", "Watcher"]

_DEAD: Final = ("stopped", "backoff")


@dataclass(frozen=True, slots=True)
class BrokersStatus:
    """How the brokers are.

    Attributes:
        components: Their processes, by number.
        controller: The number of the active controller; None while there is none.
        description: What the cluster says of itself; None when no broker answers.
    """

    components: dict[int, ComponentStatus]
    controller: int | None
    description: ClusterDescription | None

    @property
    def is_whole(self) -> bool:
        """All brokers are up and in the cluster, and all partitions are in sync everywhere."""
        return (
            self.description is not None
            and self.controller is not None
            and all(each.is_healthy for each in self.components.values())
            and len(self.description.brokers) == len(self.components)
            and not self.description.under_replicated
        )

    def leads(self, number: int) -> int:
        """Of how many partitions a broker is the leader."""
        return sum(part.leader == number for part in self._partitions())

    def lags(self, number: int) -> int:
        """Of how many partitions a broker holds a replica that is not in sync."""
        return sum(
            number in part.replicas and number not in part.in_sync for part in self._partitions()
        )

    def _partitions(self) -> Iterator[PartitionDescription]:
        topics = self.description.topics if self.description else ()
        return (part for topic in topics for part in topic.details)


class Brokers:
    """The Kafka brokers of a stack.

    Args:
        data_dir: The stack's data folder.

    Raises:
        StackError: No stack was ever started there.
    """

    def __init__(self, data_dir: Path) -> None:
        plan = read_plan(Layout(data_dir).plan)
        if plan is None:
            raise StackError(
                f"{data_dir} has no stack", remedy="start one: kstream-agg cluster up --brokers 3"
            )
        self.data_dir = data_dir
        self.count = plan.brokers
        self._ports = PortSettings(**plan.ports)
        self.bootstrap_servers = bootstrap_servers(self._ports, plan.brokers)
        self.cluster = KafkaCluster(
            KafkaSettings(bootstrap_servers=self.bootstrap_servers), "cluster"
        )

    def status(self) -> BrokersStatus:
        """How they are now."""
        stack = control.read_status(self.data_dir)
        components = {n: stack.component(broker_name(n)) for n in range(1, self.count + 1)}
        up = [
            broker_ports(self._ports, n).clients
            for n, each in components.items()
            if each.process is not None
        ]
        try:
            description = self.cluster.describe() if up else None
        except UnavailableError:
            description = None
        return BrokersStatus(components, find_controller(up) if up else None, description)

    def kill(self, number: int) -> None:
        """Kill a broker (SIGKILL) and leave it dead.

        Raises:
            StackError: There is no such broker, or it does not run.
        """
        control.kill(self.data_dir, self._name(number))

    def start(self, number: int, *, timeout_s: float = 120.0) -> None:
        """Start a dead broker and wait until it is ready; without data it begins with an empty log.

        Raises:
            StackError: There is no such broker.
            UnavailableError: It is not ready within `timeout_s`.
        """
        control.resume(self.data_dir, self._name(number), timeout_s=timeout_s)

    def lose_data(self, number: int) -> None:
        """Remove a dead broker's data, as a broken disk does.

        Raises:
            StackError: There is no such broker, or it runs.
        """
        name = self._name(number)
        if control.read_status(self.data_dir).component(name).process is not None:
            raise StackError(f"{name} runs", remedy="kill it first: kstream-agg cluster kill")
        shutil.rmtree(Layout(self.data_dir).home(name) / "data", ignore_errors=True)

    def wait_whole(self, timeout_s: float = 120.0) -> BrokersStatus:
        """Wait until all are up and all partitions in sync.

        Raises:
            UnavailableError: They are not within `timeout_s`; says what is missing.
        """
        deadline = time.monotonic() + timeout_s
        while not (status := self.status()).is_whole:
            if time.monotonic() > deadline:
                raise UnavailableError(f"after {timeout_s:.0f} s {_lack(status)}")
            time.sleep(0.2)
        return status

    def _name(self, number: int) -> str:
        if not 1 <= number <= self.count:
            raise StackError(
                f"there is no broker {number}", remedy=f"they are numbered 1 to {self.count}"
            )
        return broker_name(number)


class Watcher:
    """Starts brokers anew that stay dead; looked at again and again.

    Args:
        brokers: Which ones.
        after_s: For so long a process must be dead.
        say: Is told what happens.
        monotonic: Seconds.
    """

    def __init__(
        self,
        brokers: Brokers,
        after_s: float,
        say: Callable[[str], object],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._brokers = brokers
        self._after_s = after_s
        self._say = say
        self._monotonic = monotonic
        self._dead_since: dict[int, float] = {}
        self._was_whole: bool | None = None

    def look(self, *, replace: bool) -> BrokersStatus:
        """Look once, say what has changed, and start what has been dead for long enough.

        Raises:
            UnavailableError: A broker that was started does not become ready.
        """
        status = self._brokers.status()
        now = self._monotonic()
        for number, component in status.components.items():
            if component.state not in _DEAD:
                if self._dead_since.pop(number, None) is not None:
                    self._say(f"broker {number} is {component.state}")
                continue
            if number not in self._dead_since:
                self._dead_since[number] = now
                self._say(f"broker {number} is dead")
            if replace and now - self._dead_since[number] >= self._after_s:
                self._replace(number)
        if status.is_whole != self._was_whole:
            self._was_whole = status.is_whole
            self._say("all partitions are in sync" if status.is_whole else _lack(status))
        return status

    def _replace(self, number: int) -> None:
        data = Layout(self._brokers.data_dir).home(broker_name(number)) / "data"
        kept = (data / "meta.properties").exists()
        what = "on its data" if kept else "on an empty log, which fills from the others"
        self._say(f"broker {number} is started anew {what}")
        self._brokers.start(number)
        del self._dead_since[number]
        self._say(f"broker {number} is ready")


def _lack(status: BrokersStatus) -> str:
    if status.description is None:
        return "not whole: no broker answers"
    down = [n for n, each in status.components.items() if not each.is_healthy]
    said = [f"broker {number} is {status.components[number].state}" for number in down]
    if status.controller is None:
        said.append("there is no controller")
    behind = len(status.description.under_replicated)
    if behind:
        said.append(f"{behind} partitions are under-replicated")
    missing = len(status.components) - len(status.description.brokers)
    if missing > 0 and not down:
        said.append(f"{missing} brokers have not joined")
    return f"not whole: {'; '.join(said)}"
