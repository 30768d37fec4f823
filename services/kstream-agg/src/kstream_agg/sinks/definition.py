"""A sink connector's definition: the JSON an operator edits, its placeholders filled in.

The file holds `{"name": …, "config": {…}}` as Connect's documentation writes it. `${topics}` and
its like are filled in when it is applied; Connect's own `${provider:path:key}` is left to Connect.

Kafka's topic names carry dashes, our tables underscores, and the JDBC sink names a table after
its record's topic. So one `RegexRouter` a topic, from exactly this topic to exactly this table,
is put behind the transforms of the file. (The connector's own `snake_case` naming also splits
digits from letters: `5min` would become `5_min`.) Offsets and dead letters keep the original
topic: Connect and the connector both remember it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.names import table_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Definition", "read_definition", "render", "table_routes"]

_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ROUTER: Final = "org.apache.kafka.connect.transforms.RegexRouter"


@dataclass(frozen=True, slots=True)
class Definition:
    """A connector as its file defines it, placeholders still in it."""

    name: str
    config: Mapping[str, str]
    path: Path

    @property
    def group_id(self) -> str:
        """The consumer group its tasks read in."""
        return self.config.get("consumer.override.group.id", f"connect-{self.name}")


def read_definition(path: Path) -> Definition:
    """Read a connector's file.

    Raises:
        SettingsError: It cannot be read, is not JSON, or is not of the form above.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"the connector's file {path} does not exist") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict) or set(document) != {"name", "config"}:
        raise SettingsError(f'{path} must hold {{"name": …, "config": {{…}}}} and nothing else')
    name, config = document["name"], document["config"]
    if not isinstance(name, str) or not name:
        raise SettingsError(f"{path}: name must be a text")
    if not isinstance(config, dict):
        raise SettingsError(f"{path}: config must be an object")
    return Definition(name, {key: _text(path, key, value) for key, value in config.items()}, path)


def _text(path: Path, key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise SettingsError(f"{path}: config.{key} must be a text, a number or true/false")


def render(
    definition: Definition, values: Mapping[str, str], topics: Sequence[str]
) -> dict[str, str]:
    """The configuration Connect is given.

    Args:
        definition: The connector.
        values: What stands for each placeholder.
        topics: The topics it reads, each routed to its table.

    Raises:
        SettingsError: A placeholder is unknown; the message names it, its key and the file.
    """
    config = {key: _fill(definition, key, text, values) for key, text in definition.config.items()}
    config["name"] = definition.name
    return config | table_routes(topics, config.get("transforms", ""))


def _fill(definition: Definition, key: str, text: str, values: Mapping[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise SettingsError(
                f"{definition.path}: config.{key} uses the unknown placeholder ${{{name}}}",
                remedy="known ones: " + ", ".join(f"${{{known}}}" for known in sorted(values)),
            )
        return values[name]

    return _PLACEHOLDER.sub(value_of, text)


def table_routes(topics: Sequence[str], transforms: str = "") -> dict[str, str]:
    """The transforms that lead each topic to its table.

    Args:
        topics: The topics.
        transforms: Names of the transforms that go before, joined by commas.
    """
    names = [name.strip() for name in transforms.split(",") if name.strip()]
    routes: dict[str, str] = {}
    for number, topic in enumerate(topics):
        name = f"table{number}"
        names.append(name)
        routes[f"transforms.{name}.type"] = _ROUTER
        # Topic names are letters, digits, '.', '_' and '-': of these only '.' means more in a
        # Java regular expression outside brackets.
        routes[f"transforms.{name}.regex"] = topic.replace(".", "\\.")
        routes[f"transforms.{name}.replacement"] = table_name(topic)
    routes["transforms"] = ",".join(names)
    return routes
