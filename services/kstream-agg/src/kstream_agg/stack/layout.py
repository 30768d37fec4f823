"""What stands where in a stack's data folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one data folder."""

    folder: Path

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
    def suspended(self) -> Path:
        """A file for each component that is to stand still until further notice."""
        return self.folder / "suspended"

    def home(self, component: str) -> Path:
        """A component's own folder: its data and generated configuration."""
        return self.folder / component

    @property
    def postgres_password(self) -> Path:
        """The generated password of the database's user."""
        return self.folder / "postgres.password"
