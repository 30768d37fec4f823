"""What is wrong with settings, in sentences that name key, place and the nearest known name."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pydantic import ValidationError

__all__ = ["ENV_PREFIX", "explain_settings"]

ENV_PREFIX: Final = "KSTREAM__"
"""What every environment variable of a setting begins with."""


def explain_settings(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, object], path: Path
) -> str:
    """All that pydantic found, as one line.

    Args:
        error: What it found.
        model: The settings class it checked.
        values: What stood in the file.
        path: The file.
    """
    said = []
    for item in error.errors(include_url=False, include_input=False):
        keys = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such setting" + _suggestion(model, keys)
        name, place = ".".join(keys), _place(keys, values, path)
        said.append(f"{name} ({place}): {message}" if name else f"{message} ({place})")
    return "wrong settings: " + "; ".join(said)


def _place(keys: list[str], values: Mapping[str, object], path: Path) -> str:
    variable = ENV_PREFIX + "__".join(keys).upper()
    if variable in os.environ:
        return f"environment variable {variable}"
    # A list's item, or a variable that sets a whole group, has no variable of its own.
    missing = not _has_key(values, keys) and any(
        name.startswith(ENV_PREFIX + keys[0].upper()) for name in os.environ if keys
    )
    return "environment" if missing else str(path)


def _has_key(values: object, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _suggestion(model: type[BaseModel], keys: list[str]) -> str:
    near = difflib.get_close_matches(keys[-1], _siblings(model, keys), n=1, cutoff=0.6)
    return f"; did you mean '{'.'.join([*keys[:-1], near[0]])}'?" if near else ""


def _siblings(model: type[BaseModel], keys: Iterable[str]) -> list[str]:
    """The known names beside the last of `keys`."""
    *parents, _last = keys
    for name in parents:
        field = model.model_fields.get(name)
        if field is None:
            if name.isdigit():  # an item of a list whose item type was found already
                continue
            return []
        inner = _model_of(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_of(part)
        if found is not None:
            return found
    return None
