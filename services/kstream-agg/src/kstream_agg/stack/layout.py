"""What stands where in a stack's data folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["Layout", "make_private"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one data folder."""

    folder: Path

    @property
    def kind(self) -> Path:
        """Whether the folder's data is `live` or of a `demo`, from its first start on."""
        return self.folder / "kind"

    @property
    def plan(self) -> Path:
        """What `stack up` asked for, read by the supervisor."""
        return self.folder / "stack.json"

    @property
    def state(self) -> Path:
        """What the supervisor says of itself and its components."""
        return self.folder / "supervisor.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.folder / "supervisor.lock"

    @property
    def logs(self) -> Path:
        """A log file for each component."""
        return self.folder / "logs"

    def log(self, component: str) -> Path:
        """A component's log file."""
        return self.logs / f"{component}.log"

    @property
    def cluster_id(self) -> Path:
        """The id that all brokers of the folder share."""
        return self.folder / "cluster.id"

    @property
    def suspended(self) -> Path:
        """A file for each component that is to stand still until further notice."""
        return self.folder / "suspended"

    def home(self, component: str) -> Path:
        """A component's own folder: its data and generated configuration."""
        return self.folder / component

    @property
    def simulator_state(self) -> Path:
        """How far a demo's recording was played."""
        return self.folder / "deribit-simulator.json"

    @property
    def postgres_password(self) -> Path:
        """The generated password of the database's user."""
        return self.folder / "postgres.password"

    def holds_only(self, components: Collection[str]) -> bool:
        """Whether it is a folder with nothing in it but what a stack of `components` writes."""
        files = (self.kind, self.plan, self.state, self.lock, self.simulator_state, self.cluster_id)
        own = (*files, self.postgres_password, self.logs, self.suspended)
        names = {path.name for path in own} | set(components)
        return self.folder.is_dir() and all(
            path.name.removesuffix(".new") in names for path in self.folder.iterdir()
        )


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter; one that is there becomes so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
