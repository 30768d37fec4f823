"""Which components a stack consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import StackError
from kstream_agg.stack.components.connect import connect_component
from kstream_agg.stack.components.kafka import kafka_components
from kstream_agg.stack.components.postgres import postgres_component
from kstream_agg.stack.components.registry import registry_component
from kstream_agg.stack.components.services import (
    agg_producer_component,
    connectors_component,
    connectors_watch_component,
    raw_producer_component,
    simulator_component,
)
from kstream_agg.stack.components.zipkin import zipkin_component

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kstream_agg.stack.component import Component
    from kstream_agg.stack.context import StackContext
    from kstream_agg.stack.settings import Profile

__all__ = ["COMPONENT_NAMES", "artifact_groups", "build_components", "select_names"]

_BUILDERS: Final[dict[str, Callable[[StackContext], Component | list[Component]]]] = {
    "kafka": kafka_components,
    "schema-registry": registry_component,
    "connect": connect_component,
    "postgres": postgres_component,
    "zipkin": zipkin_component,
    "deribit-simulator": simulator_component,
    "connectors": connectors_component,
    "connectors-watch": connectors_watch_component,
    "raw-producer": raw_producer_component,
    "agg-producer": agg_producer_component,
}

COMPONENT_NAMES: Final = tuple(_BUILDERS)
"""All components of all profiles."""

_BASE: Final = ("kafka", "schema-registry", "connect", "postgres", "zipkin")
_SERVICES: Final = ("connectors", "connectors-watch", "raw-producer", "agg-producer")

_PROFILES: Final[dict[Profile, tuple[str, ...]]] = {
    "base": _BASE,
    "live": (*_BASE, *_SERVICES),
    "demo": (*_BASE, "deribit-simulator", *_SERVICES),
}

# The groups of the artifact lock that each component is made of.
_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "kafka": ("kafka",),
    "schema-registry": ("registry",),
    "connect": ("kafka", "jdbc-connector", "avro-converter"),
    "zipkin": ("zipkin",),
}


def select_names(profile: Profile, only: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of a profile's components.

    Args:
        profile: Which profile.
        only: Not all of them, but these.

    Raises:
        StackError: `only` names one that the profile does not have.
    """
    names = _PROFILES[profile]
    for name in only:
        if name not in names:
            raise StackError(
                f"profile '{profile}' has no component '{name}'",
                remedy=f"it has: {', '.join(names)}",
            )
    return tuple(name for name in names if name in only) if only else names


def build_components(names: Sequence[str], context: StackContext) -> list[Component]:
    """The components, in the order of their start.

    Raises:
        StackError: One of them needs another that is not among them.
        PrerequisiteError: Java or Postgres is not installed.
    """
    built = [_BUILDERS[name](context) for name in names]
    components = [
        component for one in built for component in (one if isinstance(one, list) else [one])
    ]
    for component in components:
        for needed in component.depends_on:
            if needed not in names:
                raise StackError(
                    f"{component.name} needs {needed}", remedy=f"add {needed} to --only"
                )
    return components


def artifact_groups(names: Sequence[str]) -> tuple[str, ...]:
    """The artifact groups these components are made of, each once."""
    return tuple(dict.fromkeys(group for name in names for group in _GROUPS.get(name, ())))
