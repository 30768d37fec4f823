"""A real stack for tests and benchmarks: started on free ports, ended whatever happens."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kstream_agg.core.errors import StackError
from kstream_agg.stack import control
from kstream_agg.stack.endpoints import find_running
from kstream_agg.stack.plan import make_plan
from kstream_agg.stack.ports import free_ports
from kstream_agg.stack.settings import PortSettings, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.stack.settings import Profile
    from kstream_agg.stack.state import StackStatus

__all__ = ["LocalStack", "open_folder"]

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
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        profile: Profile = "base",
        only: tuple[str, ...] = (),
        options: dict[str, str] | None = None,
        settings: StackSettings | None = None,
    ) -> None:
        self.data_dir = data_dir
        names = list(PortSettings.model_fields)
        ports = PortSettings(**dict(zip(names, free_ports(len(names)), strict=True)))
        self.settings = settings or StackSettings(ports=ports)
        self.plan = make_plan(profile, self.settings, only=only, options=options)

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
