"""Reading the push proxy's YAML file: every mistake is named with its place and a suggestion."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import ENV_PREFIX, config_dir
from kstream_agg.proxy.settings import ProxySettings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["load_proxy_settings"]


def load_proxy_settings(path: Path | None = None) -> ProxySettings:
    """Read the settings from a YAML file and the environment.

    Args:
        path: The file; default `push-proxy/default.yaml` in the configuration folder.

    Raises:
        SettingsError: The file cannot be read, is not YAML, or a key is unknown or has a wrong
            value; the message names key and place, and the nearest known name.
    """
    path = path or config_dir() / "push-proxy" / "default.yaml"
    values = _read_yaml(path)
    try:
        return ProxySettings(**values)
    except PydanticValidationError as error:
        raise SettingsError(_explain(error, path)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SettingsError(f"{path} does not hold a mapping of settings")
    # `kafka:` with nothing behind it is an empty group, not a null.
    return {key: {} if value is None else value for key, value in found.items()}


def _explain(error: PydanticValidationError, path: Path) -> str:
    said = []
    for item in error.errors(include_url=False, include_input=False):
        keys = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such setting" + _suggestion(keys)
        variable = ENV_PREFIX + "__".join(keys).upper()
        place = f"environment variable {variable}" if variable in os.environ else str(path)
        name = ".".join(keys)
        said.append(f"{name} ({place}): {message}" if name else f"{message} ({place})")
    return "wrong settings: " + "; ".join(said)


def _suggestion(keys: list[str]) -> str:
    near = difflib.get_close_matches(keys[-1], _siblings(keys), n=1, cutoff=0.6)
    return f"; did you mean '{'.'.join([*keys[:-1], near[0]])}'?" if near else ""


def _siblings(keys: Iterable[str]) -> list[str]:
    """The known names beside the last of `keys`."""
    model: type[BaseModel] = ProxySettings
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
