"""What this machine must have to run the local stack: each check with its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from kstream_agg.core.errors import PrerequisiteError
from kstream_agg.stack.accounts import server_account
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.docker import find_project, look_for_engine, published_ports
from kstream_agg.stack.download import default_repository
from kstream_agg.stack.ports import is_taken, port_holder
from kstream_agg.stack.profiles import COMPONENT_NAMES, artifact_groups
from kstream_agg.stack.programs import find_java, find_postgres
from kstream_agg.stack.unpack import is_unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from kstream_agg.stack.settings import PortSettings, StackSettings

__all__ = ["Check", "examine", "examine_docker", "refuse_lack"]

_PYTHON: Final = (3, 11)
# What the local stack is made of; images need more (the JMX exporter).
_GROUPS: Final = artifact_groups(COMPONENT_NAMES)
# Measured: the whole stack takes up to 2.5 GB.
_MEMORY_MB: Final = 2600
# Measured: the demo takes 1.4 GB without the consoles and Grafana, which may take as much again.
_DOCKER_MB: Final = 4000
# Downloads and their unpacked forms; and room for topics and rows.
_UNPACKED_MB: Final = 300
_DATA_MB: Final = 1000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        what: What it is.
        found: What was found.
        remedy: What to do when it is not enough; None when all is well.
    """

    what: str
    found: str
    remedy: str | None = None

    @property
    def is_good(self) -> bool:
        """Nothing to do."""
        return self.remedy is None


def examine(settings: StackSettings, data_dir: Path, *, running: bool) -> list[Check]:
    """Look at everything; nothing is started, fetched or changed.

    Args:
        settings: The stack's settings.
        data_dir: Where its data is or will be.
        running: A stack runs on it: its ports and memory are taken by itself.
    """
    cache = ArtifactCache()
    checks = [_python(), _system(), *_programs(data_dir), _cache(cache)]
    checks += _disks(cache, data_dir)
    if running:
        return [*checks, Check("ports and memory", "taken by the stack that runs")]
    return [*checks, _memory(), *_ports(settings.ports)]


def examine_docker(environ: Mapping[str, str]) -> list[Check]:
    """Look at Docker, which is not needed: only when it is there, or asked for, can it be wrong."""
    engine = look_for_engine()
    if engine.problem is not None:
        if environ.get("STACK") == "docker":
            return [Check("Docker", engine.problem, "start it, or leave STACK out")]
        return [Check("Docker", f"{engine.problem}: the stack runs in local processes")]
    checks = [Check("Docker", f"engine {engine.version}, with Compose")]
    remedy = None if engine.memory_mb >= _DOCKER_MB else f"give it {_DOCKER_MB} MB in its settings"
    checks.append(Check("memory of Docker", f"{engine.memory_mb} MB", remedy))
    if find_project(environ) is not None:
        return [*checks, Check("ports of Docker", "taken by the stack that runs")]
    taken = {name: port for name, port in published_ports(environ).items() if is_taken(port)}
    for name, port in taken.items():
        holder = port_holder(port) or "a program of another user"
        checks.append(Check(f"port {port}", f"taken by {holder}", f"end it, or set {name} in .env"))
    return checks if taken else [*checks, Check("ports of Docker", "all are free")]


def refuse_lack(cache: ArtifactCache, data_dir: Path) -> None:
    """See that memory and disk suffice before a stack is started.

    Raises:
        PrerequisiteError: They do not; names what is short and the remedy.
    """
    for check in (_memory(), *_disks(cache, data_dir)):
        if check.remedy is not None:
            raise PrerequisiteError(f"{check.what}: {check.found}", remedy=check.remedy)


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info < _PYTHON:
        return Check("Python", found, "install Python 3.11 or newer: make PYTHON=python3.11")
    if sys.prefix == sys.base_prefix:
        return Check("Python", f"{found}, no virtual environment", "run it from .venv: make setup")
    return Check("Python", f"{found} in {sys.prefix}")


def _system() -> Check:
    name = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if platform.system() == "Linux" and platform.libc_ver()[0] != "glibc":
        return Check("system", f"{name}, no glibc", "use Docker: the wheels need glibc")
    if platform.system() not in ("Linux", "Darwin"):
        return Check("system", name, "use WSL2 or Docker")
    return Check("system", name)


def _programs(data_dir: Path) -> Iterator[Check]:
    programs: dict[str, Callable[[], object]] = {
        "Java": find_java,
        "Postgres": lambda: server_account(data_dir / "postgres", find_postgres()),
        "Maven client": default_repository,
    }
    for what, find in programs.items():
        try:
            find()
        except PrerequisiteError as error:
            yield Check(what, str(error), error.remedy or "run 'make setup'")
        else:
            yield Check(what, "installed")


def _cache(cache: ArtifactCache) -> Check:
    missing = cache.absent_bytes(_GROUPS)
    if missing:
        return Check("Java files", f"{_mb(missing)} MB will be fetched into {cache.folder}")
    return Check("Java files", f"complete in {cache.folder}")


def _disks(cache: ArtifactCache, data_dir: Path) -> Iterator[Check]:
    missing = cache.absent_bytes(_GROUPS)
    if missing or not is_unpacked(cache):
        yield _disk("disk of the cache", cache.folder, _mb(missing) + _UNPACKED_MB)
    else:  # it may as well be read-only
        yield Check("disk of the cache", f"nothing is to be written to {cache.folder}")
    yield _disk("disk of the data", data_dir, _DATA_MB)


def _disk(what: str, folder: Path, wanted_mb: int) -> Check:
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = _mb(shutil.disk_usage(place).free)
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Check(what, f"{place} cannot be written", "mend its permissions, or name another")
    if free < wanted_mb:
        remedy = f"free {wanted_mb} MB there, or name a folder on another disk"
        return Check(what, f"{free} MB free at {place}", remedy)
    return Check(what, f"{free} MB free at {place}")


def _memory() -> Check:
    available = _mb(psutil.virtual_memory().available)
    if available < _MEMORY_MB:
        remedy = f"end programs until {_MEMORY_MB} MB are available"
        return Check("memory", f"{available} MB available", remedy)
    return Check("memory", f"{available} MB available")


def _ports(ports: PortSettings) -> Iterator[Check]:
    taken = {name: port for name, port in ports.model_dump().items() if is_taken(port)}
    for name, port in taken.items():
        holder = port_holder(port) or "a program of another user"
        remedy = f"end it, or set [ports] {name} in config/stack/default.toml"
        yield Check(f"port {port} ({name})", f"taken by {holder}", remedy)
    if not taken:
        yield Check("ports", f"all {len(ports.model_dump())} are free")


def _mb(size: int) -> int:
    return round(size / 1_000_000)
