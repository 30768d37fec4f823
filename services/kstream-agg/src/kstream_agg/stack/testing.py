"""A real stack for tests and benchmarks: started on free ports, ended whatever happens."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kstream_agg.core.errors import StackError
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.stack import control
from kstream_agg.stack.brokers import Brokers
from kstream_agg.stack.endpoints import find_running
from kstream_agg.stack.plan import make_plan
from kstream_agg.stack.ports import free_block, free_ports
from kstream_agg.stack.settings import PortSettings, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.stack.settings import Profile
    from kstream_agg.stack.state import StackStatus

__all__ = ["LocalCluster", "LocalStack", "open_folder"]

_READY_S = 240.0


@contextlib.contextmanager
def open_folder(prefix: str = "kstream-") -> Iterator[Path]:
    """A temporary folder that every user may pass through, as Postgres must when we are root."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class LocalStack:
    """A stack of one's own; a context manager that waits until it is ready.

    Args:
        data_dir: Where it keeps its data; the caller removes it.
        profile: Which components.
        only: Not all of them, but these.
        options: What the profile takes, such as `recording`, `loop` and `channels`.
        settings: Heaps, back-off and ports; default: the defaults on free ports.
        brokers: How many Kafka brokers.
    """

    def __init__(  # noqa: PLR0913 - a stack's parts, by name
        self,
        data_dir: Path,
        *,
        profile: Profile = "base",
        only: tuple[str, ...] = (),
        options: dict[str, str] | None = None,
        settings: StackSettings | None = None,
        brokers: int = 1,
    ) -> None:
        self.data_dir = data_dir
        names = list(PortSettings.model_fields)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["kafka_more"] = free_block(2 * brokers)
        self.settings = settings or StackSettings(ports=PortSettings(**ports))
        self.plan = make_plan(profile, self.settings, only=only, options=options, brokers=brokers)

    def start(self, *, timeout_s: float = _READY_S) -> StackStatus:
        """Bring it up and wait until all is ready.

        Raises:
            KStreamError: It cannot be started, or is not ready in time; nothing of it is left.
        """
        control.up(self.data_dir, self.plan)
        try:
            return control.wait_ready(self.data_dir, timeout_s=timeout_s)
        except BaseException:
            control.down(self.data_dir)
            raise

    def stop(self) -> list[str]:
        """End it; names of what had to be killed."""
        return control.down(self.data_dir)

    def status(self) -> StackStatus:
        """How it is."""
        return control.read_status(self.data_dir)

    @property
    def endpoints(self) -> StackEndpoints:
        """Its addresses.

        Raises:
            StackError: It does not run.
        """
        found = find_running(self.data_dir)
        if found is None:
            raise StackError(f"no stack runs on {self.data_dir}")
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class LocalCluster:
    """A Kafka cluster of several brokers for a test or a program; a context manager.

        with LocalCluster(brokers=3) as cluster:
            cluster.kafka.create_topics([TopicConfiguration("t", replication_factor=3)])
            cluster.brokers.kill(2)

    It is the local stack with nothing but its brokers, on free ports and in a temporary folder, and
    ends with the block.

    Args:
        brokers: How many.
        client_id: Of `kafka`.
        heap_mb: Of each broker.
    """

    def __init__(
        self, brokers: int = 3, *, client_id: str = "local-cluster", heap_mb: int = 256
    ) -> None:
        self._count = brokers
        self._client_id = client_id
        self._heap_mb = heap_mb
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            folder = ends.enter_context(open_folder("kstream-cluster-"))
            stack = LocalStack(folder / "data", only=("kafka",), brokers=self._count)
            memory = stack.settings.memory.model_copy(update={"kafka_mb": self._heap_mb})
            stack.plan = msgspec.structs.replace(stack.plan, memory=memory.model_dump())
            ends.enter_context(stack)
            self.data_dir = stack.data_dir
            """The stack's data folder."""
            self.brokers = Brokers(stack.data_dir)
            """Its brokers: status, kill, start."""
            self.bootstrap_servers = self.brokers.bootstrap_servers
            """As clients take it."""
            self.kafka = KafkaCluster(self.bootstrap_servers, self._client_id)
            """A client of it."""
            self.brokers.wait_whole()
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ends.close()
