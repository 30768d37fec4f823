"""What we give to other people's tools, against what these read: a mistyped key fails here.

Most of them pass over what they do not know, and Redpanda Console does not start. The schemas are
our own, made from the tools' published definitions; each says from which.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jsonschema_rs
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[4]
SCHEMAS = Path(__file__).resolve().parents[1] / "support" / "tool_schemas"
FILES = {
    "redpanda-console": "redpanda-console/console.yaml",
    "akhq": "akhq/application.yml",
    "grafana-datasources": "grafana/provisioning/datasources/prometheus.yaml",
    "grafana-providers": "grafana/provisioning/dashboards/pipeline.yaml",
    "grafana-dashboard": "grafana/dashboards/pipeline.json",
    "pgadmin-servers": "pgadmin/servers.json",
}
# Keys that are names of our own choice.
NAMES = {("akhq", "connections", "kstream-agg"), ("Servers", "1")}

Place: TypeAlias = tuple[str | int, ...]


def configuration(tool: str) -> Any:  # noqa: ANN401 - YAML, of which JSON is a part
    return yaml.safe_load((ROOT / "config" / FILES[tool]).read_text("utf-8"))


def validator(tool: str) -> jsonschema_rs.Validator:
    schema = yaml.safe_load((SCHEMAS / f"{tool}.yaml").read_text("utf-8"))
    return jsonschema_rs.validator_for(schema)


def keys(value: Any, place: Place = ()) -> Iterator[Place]:  # noqa: ANN401 - YAML
    """Where the keys of a document are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, key)
            yield from keys(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys(inner, (*place, index))


def mistyped(document: Any, place: Place) -> Any:  # noqa: ANN401 - YAML
    """The document with one key of another name."""
    changed = copy.deepcopy(document)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[f"{place[-1]}x"] = inner.pop(place[-1])
    return changed


@pytest.mark.parametrize("tool", FILES)
def test_it_is_what_the_tool_reads(tool: str) -> None:
    errors = [
        f"{'/'.join(map(str, error.instance_path))}: {error.message}"
        for error in validator(tool).iter_errors(configuration(tool))
    ]
    assert errors == []


@pytest.mark.parametrize("tool", FILES)
def test_any_mistyped_key_is_found(tool: str) -> None:
    document, check = configuration(tool), validator(tool)
    places = [place for place in keys(document) if place not in NAMES]
    assert places
    unnoticed = [place for place in places if check.is_valid(mistyped(document, place))]
    assert unnoticed == []


@pytest.mark.parametrize(
    ("tool", "place", "value"),
    [
        ("redpanda-console", ("kafka", "brokers"), []),
        ("redpanda-console", ("schemaRegistry", "urls", 0), "schema-registry:8080"),
        ("akhq", ("akhq", "connections", "kstream-agg", "schema-registry", "type"), "apicurio"),
        ("grafana-datasources", ("datasources", 0, "type"), "promethius"),
        ("grafana-providers", ("providers", 0, "options", "path"), "dashboards"),
        ("grafana-dashboard", ("panels", 0, "gridPos", "w"), 25),
        ("pgadmin-servers", ("Servers", "1", "Port"), "5432"),
    ],
)
def test_a_wrong_value_is_found(tool: str, place: Place, value: object) -> None:
    document = configuration(tool)
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    assert not validator(tool).is_valid(document)


def test_every_file_of_these_tools_is_checked() -> None:
    folders = {name.split("/")[0] for name in FILES.values()}
    found = {
        str(path.relative_to(ROOT / "config"))
        for folder in folders
        for path in (ROOT / "config" / folder).rglob("*")
        if path.is_file()
    }
    assert found == set(FILES.values())
