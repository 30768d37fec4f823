"""The stack in Docker Compose, seen and handled from the host.

Everything is asked of the `docker` command: it knows contexts, hosts and credentials, and people
can repeat what is done here by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from kstream_agg.core.errors import PrerequisiteError, SettingsError, StackError
from kstream_agg.core.settings import ENV_PREFIX, PostgresSettings, config_dir
from kstream_agg.sinks.postgres import jdbc_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kstream_agg.stack.settings import Kind

__all__ = [
    "ComposeProject",
    "Container",
    "Engine",
    "StackChoice",
    "choose_stack",
    "find_project",
    "has_volumes",
    "look_for_engine",
    "project_of",
    "published_ports",
]

# `start_interval` needs this engine, `!override` and optional dependencies this Compose.
_ENGINE: Final = (25,)
_COMPOSE: Final = (2, 24)
_ANSWER_S: Final = 10
_FILE: Final = "docker-compose.yml"
_NAMES: Final[dict[Kind, str]] = {"live": "kstream-agg", "demo": "kstream-agg-demo"}


@dataclass(frozen=True, slots=True)
class Engine:
    """What was found of Docker.

    Attributes:
        problem: Why it cannot be used; None when it can.
        version: The engine's version.
        memory_mb: What it may use.
    """

    problem: str | None
    version: str = ""
    memory_mb: int = 0


@dataclass(frozen=True, slots=True)
class StackChoice:
    """Where the stack is to run, and why there."""

    where: Literal["local", "docker"]
    why: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the stack.

    Attributes:
        name: Its own name.
        service: The service it is of.
        state: `running`, `exited`, `restarting`, …
        health: `healthy`, `unhealthy`, `starting`; empty without a check.
        exit_code: How it ended, once it has.
        status: Both in Docker's words.
        ports: Ports on this machine by the container's own.
    """

    name: str
    service: str
    state: str
    health: str
    exit_code: int
    status: str
    ports: Mapping[int, int]

    @property
    def is_healthy(self) -> bool:
        """Runs and is well, or has done what it was there for."""
        if self.state == "exited":
            return self.exit_code == 0
        return self.state == "running" and self.health in ("healthy", "")


def look_for_engine() -> Engine:
    """Whether an engine with Compose answers."""
    if shutil.which("docker") is None:
        return Engine("docker is not installed")
    compose = _ask("compose", "version", "--short")
    if compose is None or _version(compose) < _COMPOSE:
        return Engine(f"Docker Compose is {compose or 'missing'}; {_text(_COMPOSE)} is needed")
    said = _ask("info", "--format", "{{.ServerVersion}} {{.MemTotal}}")
    found = re.fullmatch(r"(\d\S*) (\d+)", said or "")
    if found is None:
        return Engine("no Docker engine answers")
    version, memory_mb = found[1], int(found[2]) // 1_000_000
    if _version(version) < _ENGINE:
        return Engine(
            f"the Docker engine is {version}; {_text(_ENGINE)} is needed", version, memory_mb
        )
    return Engine(None, version, memory_mb)


def choose_stack(environ: Mapping[str, str], *, only_local: str | None = None) -> StackChoice:
    """Docker where an engine answers, else local processes; `STACK` forces one of them.

    Args:
        environ: Holds `STACK`.
        only_local: Why what is asked for runs in local processes only; None when it runs in both.

    Raises:
        SettingsError: `STACK` is neither `local` nor `docker`.
        PrerequisiteError: Docker is asked for and cannot be used.
    """
    forced = environ.get("STACK", "")
    if forced not in ("", "local", "docker"):
        raise SettingsError(f"STACK is '{forced}'", remedy="it can be local or docker")
    if forced == "local":
        return StackChoice("local", "STACK=local")
    if only_local is not None:
        if forced == "docker":
            raise SettingsError(
                f"STACK=docker does not go together with this: {only_local}",
                remedy="leave STACK out",
            )
        return StackChoice("local", only_local)
    engine = look_for_engine()
    if engine.problem is None:
        return StackChoice(
            "docker", (forced and "STACK=docker") or f"engine {engine.version} answers"
        )
    if forced == "docker":
        raise PrerequisiteError(
            engine.problem, remedy="start Docker, or leave STACK out: local processes need none"
        )
    return StackChoice("local", engine.problem)


class ComposeProject:
    """A stack in Docker Compose.

    Args:
        name: The project's name.
        root: The checkout that holds its files.
        kind: What its trades are.
    """

    def __init__(self, name: str, root: Path, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        self._root = root

    def command(self, *arguments: str) -> list[str]:
        """The command line for one of Compose's subcommands."""
        files = [self._root / ".env"]
        if self.kind == "demo":
            files.append(self._root / "config" / "compose" / "demo.env")
        given = [part for file in files if file.exists() for part in ("--env-file", str(file))]
        place = ("--project-directory", str(self._root), "--project-name", self.name)
        return ["docker", "compose", *place, *given, *arguments]

    def run(self, *arguments: str, quiet: bool = False) -> None:
        """Run a subcommand; what it says goes to the terminal.

        Raises:
            StackError: It failed.
        """
        done = subprocess.run(
            self.command(*arguments), check=False, cwd=self._root, capture_output=quiet
        )
        if done.returncode != 0:
            raise StackError(
                f"docker compose {arguments[0]} failed (exit code {done.returncode})",
                remedy="see the lines above, and: make logs s=SERVICE",
            )

    def containers(self) -> list[Container]:
        """Its containers, those that have ended too."""
        said = _ask("compose", "-p", self.name, "ps", "--all", "--format", "json") or ""
        return [_container(json.loads(line)) for line in said.splitlines()]

    def environment(self) -> dict[str, str]:
        """The `KSTREAM__…` variables that point our programs on this machine at it."""
        found = {container.service: container for container in self.containers()}
        values: dict[str, str] = {"POSTGRES__HOST": "127.0.0.1"}
        for service, inside, setting, form in (
            ("kafka", 9092, "KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:{}"),
            ("schema-registry", 8080, "REGISTRY__URL", "http://127.0.0.1:{}/apis/ccompat/v7"),
            ("connect", 8083, "CONNECT__URL", "http://127.0.0.1:{}"),
            ("postgres", 5432, "POSTGRES__PORT", "{}"),
            ("clickhouse", 8123, "CLICKHOUSE__URL", "http://127.0.0.1:{}"),
        ):
            port = found[service].ports.get(inside) if service in found else None
            if port is not None:
                values[setting] = form.format(port)
        # As Connect's workers see them, from inside.
        values["CONNECT__REGISTRY_URL"] = "http://schema-registry:8080/apis/registry/v2"
        values["CONNECT__POSTGRES_URL"] = jdbc_url(PostgresSettings(host="postgres"))
        postgres = self._variables(found.get("postgres"))
        if "POSTGRES_PASSWORD" in postgres:
            values["POSTGRES__PASSWORD"] = postgres["POSTGRES_PASSWORD"]
        clickhouse = self._variables(found.get("clickhouse"))
        for variable, setting in (("DB", "DATABASE"), ("USER", "USER"), ("PASSWORD", "PASSWORD")):
            if f"CLICKHOUSE_{variable}" in clickhouse:
                values[f"CLICKHOUSE__{setting}"] = clickhouse[f"CLICKHOUSE_{variable}"]
        channels = self._variables(found.get("raw-producer")).get(f"{ENV_PREFIX}CHANNELS")
        if channels:
            values["CHANNELS"] = channels
        return {ENV_PREFIX + name: value for name, value in values.items()}

    def _variables(self, container: Container | None) -> dict[str, str]:
        if container is None:
            return {}
        said = _ask("inspect", "--format", "{{json .Config.Env}}", container.name)
        # A variable that the compose file passes on and nobody has set stands without "=".
        lines = (line.partition("=") for line in json.loads(said or "[]"))
        return {name: value for name, equals, value in lines if equals}


def project_of(kind: Kind) -> ComposeProject:
    """The checkout's project of a kind, whether it runs or not; named as Compose names it.

    Raises:
        SettingsError: This is no checkout.
    """
    root = config_dir().parent
    if not (root / _FILE).exists():
        raise SettingsError(f"{root} has no {_FILE}", remedy="run inside the checkout")
    return ComposeProject(os.environ.get("COMPOSE_PROJECT_NAME", _NAMES[kind]), root, kind)


def find_project(environ: Mapping[str, str] = os.environ) -> ComposeProject | None:
    """The checkout's stack that runs in Docker; None when none does, or `STACK` is `local`."""
    if environ.get("STACK") == "local" or shutil.which("docker") is None:
        return None
    said = _ask("compose", "ls", "--format", "json")
    if not said:
        return None
    try:
        root = config_dir().parent
    except SettingsError:  # outside any checkout
        return None
    for row in json.loads(said):
        files = [Path(file) for file in row["ConfigFiles"].split(",")]
        if root / _FILE in files and "running" in row["Status"]:
            kind: Kind = "demo" if row["Name"] == _NAMES["demo"] else "live"
            return ComposeProject(row["Name"], root, kind)
    return None


def published_ports(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The ports of this machine that the compose files take, by the variable that sets each."""
    file = config_dir().parent / "docker-compose.override.yaml"
    text = file.read_text("utf-8") if file.exists() else ""
    found = re.findall(r"\$\{([A-Z0-9_]+_PORT):-(\d+)\}", text)
    return {name: int(environ.get(name, default)) for name, default in found}


def has_volumes(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Docker keeps data of the checkout's projects; without Docker it does not."""
    if environ.get("STACK") == "local" or shutil.which("docker") is None:
        return False
    label = "label=com.docker.compose.project"
    return any(
        _ask("volume", "ls", "--quiet", "--filter", f"{label}={name}") for name in _NAMES.values()
    )


def _container(row: Mapping[str, Any]) -> Container:
    published = {
        int(each["TargetPort"]): int(each["PublishedPort"])
        for each in row.get("Publishers") or ()
        if each["PublishedPort"]
    }
    return Container(
        row["Name"],
        row["Service"],
        row["State"],
        row.get("Health", ""),
        int(row.get("ExitCode", 0)),
        row.get("Status", ""),
        published,
    )


def _ask(*arguments: str) -> str | None:
    """What a docker command prints; None when it fails or does not answer."""
    try:
        done = subprocess.run(
            ["docker", *arguments],  # noqa: S607 - the user's own docker
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _text(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
