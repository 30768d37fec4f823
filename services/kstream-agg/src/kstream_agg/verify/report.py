"""What was compared and what was found, for people, machines and the exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Check", "Report"]

_EXAMPLES: Final = 5
_DIFFERENT: Final = 1
_NOTHING_COMPARED: Final = 2


@dataclass(slots=True)
class Check:
    """One comparison over one topic.

    Args:
        name: What is compared with what.
        topic: Over which topic.
    """

    name: str
    topic: str
    compared: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    """What was seen and deliberately not compared, and how often."""

    def differs(self, example: str) -> None:
        """Count a difference; the first few are kept as examples."""
        self.differences += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)

    def note(self, what: str, count: int = 1) -> None:
        """Count something that is not compared."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one run."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0: all equal; 1: a difference; 2: one kind of check had nothing to compare."""
        if any(check.differences for check in self.checks):
            return _DIFFERENT
        compared: dict[str, int] = {}
        for check in self.checks:
            compared[check.name] = compared.get(check.name, 0) + check.compared
        return 0 if compared and all(compared.values()) else _NOTHING_COMPARED

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            "equal": self.exit_code == 0,
            "exit_code": self.exit_code,
            "checks": [
                {
                    "check": check.name,
                    "topic": check.topic,
                    "compared": check.compared,
                    "differences": check.differences,
                    "examples": check.examples,
                    "not_compared": check.notes,
                }
                for check in self.checks
            ],
        }
