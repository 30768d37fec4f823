"""Reading the push proxy's YAML file: every mistake is named with its place and a suggestion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError as PydanticValidationError

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import config_dir
from kstream_agg.core.settings_errors import explain_settings
from kstream_agg.proxy.settings import ProxySettings

if TYPE_CHECKING:
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
        raise SettingsError(explain_settings(error, ProxySettings, values, path)) from error


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
