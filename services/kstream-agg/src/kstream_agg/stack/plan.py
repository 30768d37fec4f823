"""What a stack is to be: written by `stack up`, read by the supervisor it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from kstream_agg.core.errors import StackError
from kstream_agg.core.settings import config_dir
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.context import StackContext
from kstream_agg.stack.settings import (
    ArtifactSettings,
    Kind,
    MemorySettings,
    PortSettings,
    Profile,
    RestartSettings,
    kind_of,
)

if TYPE_CHECKING:
    from kstream_agg.stack.layout import Layout
    from kstream_agg.stack.settings import StackSettings

__all__ = [
    "Plan",
    "make_plan",
    "plan_context",
    "read_kind",
    "read_plan",
    "write_kind",
    "write_plan",
]


class Plan(msgspec.Struct, frozen=True):
    """A stack as it was asked for.

    Attributes:
        profile: Which components.
        only: Not all of them, but these; empty for all.
        ports: The table `[ports]`.
        memory: The table `[memory]`.
        restart: The table `[restart]`.
        repository: Where Java files come from; None for the public repository.
        cache_dir: The cache folder.
        config_dir: The folder with the services' settings.
        options: What the profile takes beside settings.
        brokers: How many Kafka brokers.
    """

    profile: Profile
    only: tuple[str, ...]
    ports: dict[str, int]
    memory: dict[str, int]
    restart: dict[str, float]
    repository: str | None
    cache_dir: str
    config_dir: str
    options: dict[str, str] = {}
    brokers: int = 1


def make_plan(
    profile: Profile,
    settings: StackSettings,
    *,
    only: tuple[str, ...] = (),
    options: dict[str, str] | None = None,
    brokers: int = 1,
) -> Plan:
    """The plan that settings and arguments stand for."""
    return Plan(
        profile=profile,
        only=only,
        ports=settings.ports.model_dump(),
        memory=settings.memory.model_dump(),
        restart=settings.restart.model_dump(),
        repository=settings.artifacts.repository,
        cache_dir=str(ArtifactCache().folder),
        config_dir=str(config_dir()),
        options=options or {},
        brokers=brokers,
    )


def plan_context(plan: Plan, layout: Layout) -> StackContext:
    """What the plan's components are built from."""
    return StackContext(
        layout=layout,
        ports=PortSettings(**plan.ports),
        memory=MemorySettings(**plan.memory),
        restart=RestartSettings(**plan.restart),
        artifacts=ArtifactSettings(repository=plan.repository),
        cache=ArtifactCache(Path(plan.cache_dir)),
        profile=plan.profile,
        config=Path(plan.config_dir),
        options=plan.options,
        brokers=plan.brokers,
    )


def write_plan(path: Path, plan: Plan) -> None:
    """Replace the plan's file."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    new.replace(path)


def read_plan(path: Path) -> Plan | None:
    """The plan of a data folder; None when it has none.

    Raises:
        StackError: The file is not a plan.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StackError(
            f"{path} cannot be read: {error}", remedy="remove it, and start the stack again"
        ) from error


def write_kind(layout: Layout, kind: Kind) -> None:
    """Write down what a folder's data is; the first word on it stays."""
    if not layout.kind.exists():
        new = layout.kind.with_name(layout.kind.name + ".new")
        new.write_text(f"{kind}\n", encoding="ascii")
        new.replace(layout.kind)


def read_kind(layout: Layout) -> Kind | None:
    """What a folder's data is; None when no stack was ever started there.

    Raises:
        StackError: The folder does not say it in a way that can be read.
    """
    if not layout.folder.is_dir():
        return None
    try:
        said = layout.kind.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        plan = read_plan(layout.plan)
        return kind_of(plan.profile) if plan else None
    except (OSError, UnicodeDecodeError) as error:
        said = str(error)
    for kind in get_args(Kind):
        if said == kind:
            return kind_of(kind)
    raise StackError(
        f"{layout.kind} must say whether the data is live or of a demo, and says: {said}",
        remedy="write 'live' or 'demo' into it, or empty the folder: 'kstream-agg stack reset'",
    )
